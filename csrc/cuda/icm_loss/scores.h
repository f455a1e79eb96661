// Scores and exponentials read from a tile, and their reduction over the rows and columns that the lanes of a warp
// stand for (equations: ../../icm_math.h).
//
// A block of 32 columns takes `lanes` steps; the sums over rows of its 32 columns then come out of lanes - 1 shuffles,
// one column to each lane.
#pragma once

#include "tile.h"

namespace icm {

// The column of a block of 32 whose sum over rows a lane ends up with.
template <typename TileType>
__device__ __forceinline__ int lane_column() {
  return lane_row<TileType>() * TileType::sides + lane_side<TileType>();
}

// T from what a tile holds, for a row of offset m.
template <typename TileType>
__device__ __forceinline__ typename TileType::acc t_from(const TileType& tile,
                                                         typename TileType::stored stored, int32_t slot,
                                                         typename TileType::acc m,
                                                         typename TileType::acc sigma) {
  const auto value = to_acc(stored);
  if constexpr (TileType::raw) return slot >= tile.used ? value : (value - m) * sigma;  // extra slots hold T
  return value;
}

// x of one column for one row, eq. 3.
template <typename TileType>
__device__ __forceinline__ typename TileType::acc score(const TileType& tile,
                                                        const Column<typename TileType::acc>& column, int row,
                                                        typename TileType::acc m,
                                                        typename TileType::acc sigma) {
  return mixed_score(column.w_a, t_from(tile, tile.at(column.slot_a, row), column.slot_a, m, sigma),
                     column.w_b, t_from(tile, tile.at(column.slot_b, row), column.slot_b, m, sigma), Fma());
}

// A tile of T or of factors as a lane reads it.
template <typename TileType>
struct LaneScores {
  using acc_t = typename TileType::acc;
  using Rows = typename TileType::PerRowOfLane;
  const TileType& tile;
  Rows offset;  // of a raw tile only
  acc_t sigma;
  const typename TileType::stored* own;

  __device__ __forceinline__ LaneScores(const TileType& of, const Rows& offsets, acc_t factor)
      : tile(of), offset(offsets), sigma(factor), own(of.lane(lane_row<TileType>())) {}

  // T, or the factor, of a class.
  __device__ __forceinline__ Rows operator[](int32_t slot) const {
    using Stored = typename TileType::Stored;
    // In bytes: the compiler multiplies by the size of an element a second time otherwise.
    constexpr int32_t apart = TileType::stride * int(sizeof(typename TileType::stored));
    const Stored stored = *reinterpret_cast<const Stored*>(reinterpret_cast<const char*>(own) + slot * apart);
    Rows t;
#pragma unroll
    for (int p = 0; p < TileType::pack; ++p) t.of[p] = t_from(tile, stored.of[p], slot, offset.of[p], sigma);
    return t;
  }
  // 2^x of a column whose T are given.
  __device__ __forceinline__ static Rows exponential(acc_t w_a, const Rows& t_a, acc_t w_b, const Rows& t_b) {
    Rows e;
#pragma unroll
    for (int p = 0; p < TileType::pack; ++p)
      e.of[p] = exp2_flushed(mixed_score(w_a, t_a.of[p], w_b, t_b.of[p], Fma()));
    return e;
  }
  __device__ __forceinline__ static Rows product(const Rows& a, const Rows& b) {
    Rows e;
#pragma unroll
    for (int p = 0; p < TileType::pack; ++p) e.of[p] = a.of[p] * b.of[p];
    return e;
  }
  __device__ __forceinline__ Rows exponential(const Column<acc_t>& column) const {
    if constexpr (TileType::factored) {
      // Both factors of a pure class, whose slot_b is the zero slot, are its own.
      const int32_t slot_b = column.w_b == acc_t(0) ? column.slot_a : column.slot_b;
      return product((*this)[column.slot_a], (*this)[tile.as_partner(slot_b)]);
    } else {
      return exponential(column.w_a, (*this)[column.slot_a], column.w_b, (*this)[column.slot_b]);
    }
  }
};

// For a repaired batch, whose tile holds logits: S - m, kept finite for finite S, so that equal masks such as the
// type's lowest number stay equal scores, and two of them can be subtracted.
template <typename acc_t>
__device__ __forceinline__ acc_t distance(acc_t s, acc_t m) {
  constexpr acc_t most = largest_finite<acc_t>() / 4;
  const acc_t t = s - m;
  if (!(s > -infinity<acc_t>() && s < infinity<acc_t>())) return t;
  return t > most ? most : t < -most ? -most : t;
}
template <typename TileType>
__device__ __forceinline__ typename TileType::acc distance_score(const TileType& tile,
                                                                 const Column<typename TileType::acc>& column,
                                                                 int row, typename TileType::acc m) {
  return mixed_score(column.w_a, distance(to_acc(tile.at(column.slot_a, row)), m), column.w_b,
                     distance(to_acc(tile.at(column.slot_b, row)), m), Fma());
}

// Combines v[k] over the lanes of a column, for every k: lane k of each side gets the result of v[k]. Recursive, so
// that every index is a constant: nvcc does not unroll a loop whose count is halved, and v would go to memory.
template <int kWidth, typename acc_t, typename Combine>
__device__ __forceinline__ acc_t combine_rows(acc_t* v, Combine combine) {
  if constexpr (kWidth == 1) {
    return v[0];
  } else {
    constexpr int half = kWidth / 2;
    const bool upper = (lane_index() & half) != 0;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const acc_t kept = upper ? v[k + half] : v[k], sent = upper ? v[k] : v[k + half];
      v[k] = combine(kept, shuffle_xor(sent, half));
    }
    return combine_rows<half>(v, combine);
  }
}

// Combines over the sides: every lane of a row gets the same result.
template <int kLanes, typename acc_t, typename Combine>
__device__ __forceinline__ acc_t combine_sides(acc_t value, Combine combine) {
#pragma unroll
  for (int width = kLanes; width < kWarp; width *= 2) value = combine(value, shuffle_xor(value, width));
  return value;
}

// Combines what each warp has for each row and gives it to the first kLanes * kPack threads of the block, in `result`.
// `scratch`: as many words for each warp. Ends with a barrier.
template <int kLanes, typename acc_t, int kPack, typename Combine>
__device__ void combine_warps(const PerRow<acc_t, kPack>& values, acc_t* scratch, acc_t* result,
                              Combine combine) {
  constexpr int kRows = kLanes * kPack;
#pragma unroll
  for (int p = 0; p < kPack; ++p) {
    const acc_t value = combine_sides<kLanes>(values.of[p], combine);
    if (lane_index() < kLanes) scratch[warp_index() * kRows + lane_index() * kPack + p] = value;
  }
  sync_block();
  if (threadIdx.x < kRows) {
    acc_t combined = scratch[threadIdx.x];
    for (int warp = 1; warp < warp_count(); ++warp)
      combined = combine(combined, scratch[warp * kRows + threadIdx.x]);
    result[threadIdx.x] = combined;
  }
  sync_block();
}

// Exponentials of a block of 32 columns, of which `columns` is this side's first: adds them to this lane's rows; returns
// the sum of lane_column() over the tile's rows, weighted by w.
template <typename TileType>
__device__ __forceinline__ typename TileType::acc sum_block(const LaneScores<TileType>& scores,
                                                            const Column<typename TileType::acc>* columns,
                                                            const typename TileType::PerRowOfLane& w,
                                                            typename TileType::PerRowOfLane& row_sums) {
  using acc_t = typename TileType::acc;
  acc_t weighted[TileType::lanes];
#pragma unroll
  for (int step = 0; step < TileType::lanes; ++step) {
    const Column<acc_t> column = columns[step * TileType::sides];
    const auto e = scores.exponential(column);
    weighted[step] = w.of[0] * e.of[0];
#pragma unroll
    for (int p = 1; p < TileType::pack; ++p)
      weighted[step] = fused_multiply_add(w.of[p], e.of[p], weighted[step]);
#pragma unroll
    for (int p = 0; p < TileType::pack; ++p) row_sums.of[p] += e.of[p];
  }
  return combine_rows<TileType::lanes>(weighted, Add());
}

// Calls visit(first column) for this warp's blocks of columns.
template <typename Visit>
__device__ __forceinline__ void for_each_block(int64_t columns, Visit visit) {
  const int64_t blocks = column_blocks(columns);
  for (int64_t block = warp_index(); block < blocks; block += warp_count()) visit(block * kWarp);
}

}  // namespace icm
