// A tile: the logits of a few rows for the used classes, in shared memory, and how it is filled.
//
// [slot][row]. A lane works on `pack` rows of a column at once, which it reads with one access; `lanes` lanes are the
// rows of a column, and the `sides` of a warp take neighbouring columns: what a column costs is shared by its rows.
// A quarter of a warp reads 128 bytes at once: with 32 rows one slot, free of conflicts whichever it is.
#pragma once

#include "problem.h"

namespace icm {

// Logits of 16 bits may be kept as they came (stored_t): more rows fit, and T is formed where it is used.
//
// With one lam for the batch (kFactored) a tile holds exponentials instead of T, one for each role of a class:
// e_ij = 2^(lam T[i,a_j]) * 2^((1 - lam) T[i,b_j]), so that a column costs a product and no exponential. If e is not
// tiny neither factor is: both are at most 1.
template <typename acc_t, int kRows, bool kFactored = false, typename stored_t = acc_t>
struct Tile {
  using acc = acc_t;
  using stored = stored_t;
  static constexpr bool raw = !std::is_same_v<stored_t, acc_t>, factored = kFactored;
  static constexpr int rows = kRows, pack = sizeof(acc_t) == 8 ? 1 : kRows < 4 ? kRows : 4;
  static constexpr int lanes = kRows / pack, sides = kWarp / lanes;
  // Many rows are an odd number of packs apart, so that neither do lanes = slots conflict when rows are loaded. Few
  // rows conflict once or twice there, which costs less than the memory.
  static constexpr int stride = kRows <= 2 || (kRows <= 8 && pack > 1) ? kRows : kRows + pack;
  using PerRowOfLane = PerRow<acc_t, pack>;
  using Stored = PerRow<stored_t, pack>;

  stored_t* values;
  int32_t used;

  static ICM_HOST_DEVICE int64_t size(int64_t slots) {
    return (kFactored ? 2 : 1) * (slots + kExtraSlots) * stride;
  }
  __device__ __forceinline__ stored_t& at(int32_t slot, int row) const { return values[slot * stride + row]; }
  // Of a lane's rows of slot 0; those of other slots are `stride` numbers apart.
  __device__ __forceinline__ stored_t* lane(int lane_row) const { return values + lane_row * pack; }
  // The factors of a class in role b lie behind those in role a.
  __device__ __forceinline__ int32_t as_partner(int32_t slot) const { return used + kExtraSlots + slot; }
};

// Which of the lanes of a column this one is; its rows are lane_row * pack and those after it.
template <typename TileType>
__device__ __forceinline__ int lane_row() {
  return lane_index() % TileType::lanes;
}
template <typename TileType>
__device__ __forceinline__ int lane_side() {
  return lane_index() / TileType::lanes;
}
// What a function of the row says of each row of this lane.
template <typename TileType, typename OfRow>
__device__ __forceinline__ typename TileType::PerRowOfLane for_rows(OfRow of_row) {
  typename TileType::PerRowOfLane result;
#pragma unroll
  for (int p = 0; p < TileType::pack; ++p) result.of[p] = of_row(lane_row<TileType>() * TileType::pack + p);
  return result;
}

struct Fma {
  template <typename acc_t>
  __device__ __forceinline__ acc_t operator()(acc_t a, acc_t b, acc_t c) const {
    return fused_multiply_add(a, b, c);
  }
};
struct Add {
  template <typename acc_t>
  __device__ __forceinline__ acc_t operator()(acc_t a, acc_t b) const {
    return a + b;
  }
};
struct Larger {  // a NaN drops out: the sums will show it
  template <typename acc_t>
  __device__ __forceinline__ acc_t operator()(acc_t a, acc_t b) const {
    return b > a ? b : a;
  }
};

// How many warps share the classes of a lane's rows when they are loaded, and words of `part_max` for that.
template <typename TileType>
ICM_HOST_DEVICE int load_parts(int warps) {
  return warps > TileType::lanes ? warps / TileType::lanes : 1;
}
template <typename TileType>
ICM_HOST_DEVICE int load_scratch(int warps) {
  return load_parts<TileType>(warps) * TileType::rows;
}

template <typename scalar_t, typename TileType>
__device__ void load_rows_as(const Logits& logits, typename TileType::acc sign, const int32_t* present,
                             int64_t row0, int valid, const TileType& tile,
                             typename TileType::acc* part_max) {
  using acc_t = typename TileType::acc;
  constexpr int kPack = TileType::pack, kBatch = 8 / kPack;  // 8 loads in flight
  const scalar_t* values = static_cast<const scalar_t*>(logits.values);
  const int parts = load_parts<TileType>(warp_count()), lane = lane_index();
  const int32_t range = ((tile.used + parts - 1) / parts + kWarp - 1) / kWarp * kWarp;
  for (int item = warp_index(); item < TileType::lanes * parts; item += warp_count()) {
    const int part = item / TileType::lanes, first_row = item % TileType::lanes * kPack;
    const int32_t end = (part + 1) * range < tile.used ? (part + 1) * range : tile.used;
    typename TileType::stored* to = tile.lane(item % TileType::lanes);
    PerRow<acc_t, kPack> largest;
#pragma unroll
    for (int p = 0; p < kPack; ++p) largest.of[p] = -largest_finite<acc_t>();
    for (int32_t begin = part * range; begin < end; begin += kBatch * kWarp) {
      PerRow<acc_t, kPack> batch[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int32_t slot = begin + k * kWarp + lane;
        const int64_t at = slot < end ? int64_t(present[slot]) * logits.class_stride : 0;
#pragma unroll
        for (int p = 0; p < kPack; ++p)
          batch[k].of[p] = slot < end && first_row + p < valid
                               ? to_acc(values[(row0 + first_row + p) * logits.row_stride + at]) * sign
                               : acc_t(0);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int32_t slot = begin + k * kWarp + lane;
        if (slot >= end) continue;
        typename TileType::Stored stored;
#pragma unroll
        for (int p = 0; p < kPack; ++p) {
          const acc_t value = batch[k].of[p];
          from_acc(value, &stored.of[p]);  // exact: it came in this type
          if (value > largest.of[p] && value < infinity<acc_t>()) largest.of[p] = value;
        }
        *reinterpret_cast<typename TileType::Stored*>(to + slot * TileType::stride) = stored;
      }
    }
#pragma unroll
    for (int p = 0; p < kPack; ++p) {
#pragma unroll
      for (int width = kWarp / 2; width > 0; width /= 2)
        largest.of[p] = Larger()(largest.of[p], shuffle_xor(largest.of[p], width));
      const int row = first_row + p;
      if (lane == 0) part_max[part * TileType::rows + row] = row < valid ? largest.of[p] : acc_t(0);
    }
  }
}

// Fills a tile with sign * logits; rows beyond `valid` with 0. Then offset[row], if not null, is M_i: the largest
// finite logit of a used class, or with no finite one -largest, so that -inf still scores -inf and NaN stays NaN.
// Ends with a barrier.
template <typename TileType>
__device__ void load_tile(const Logits& logits, typename TileType::acc sign, const int32_t* present,
                          int64_t row0, int valid, const TileType& tile, typename TileType::acc* part_max,
                          typename TileType::acc* offset) {
  using acc_t = typename TileType::acc;
  constexpr int kRows = TileType::rows;
  if constexpr (TileType::raw || sizeof(acc_t) == 8) {
    load_rows_as<typename TileType::stored>(logits, sign, present, row0, valid, tile, part_max);
  } else {
    switch (logits.type) {
      case LogitType::kBFloat16:
        load_rows_as<bfloat16>(logits, sign, present, row0, valid, tile, part_max);
        break;
      case LogitType::kFloat16:
        load_rows_as<float16>(logits, sign, present, row0, valid, tile, part_max);
        break;
      default:
        load_rows_as<float>(logits, sign, present, row0, valid, tile, part_max);
    }
  }
  for (int k = threadIdx.x; k < kExtraSlots * kRows; k += blockDim.x)
    from_acc(k / kRows == kPaddingSlot ? -infinity<acc_t>() : acc_t(0),
             &tile.at(tile.used + k / kRows, k % kRows));
  sync_block();
  if (offset == nullptr) return;
  if (threadIdx.x < kRows) {
    acc_t largest = part_max[threadIdx.x];
    for (int part = 1; part < load_parts<TileType>(warp_count()); ++part)
      largest = Larger()(largest, part_max[part * kRows + threadIdx.x]);
    offset[threadIdx.x] = largest;
  }
  sync_block();
}

// T = (S - M) * sigma in place: subtract first (../../icm_math.h). Ends with a barrier.
template <typename TileType>
__device__ void shift_tile(const TileType& tile, const typename TileType::acc* offset,
                           typename TileType::acc sigma) {
  if constexpr (!TileType::raw) {
    const int row = threadIdx.x % TileType::rows;
    const auto m = offset[row];
    for (int32_t slot = int32_t(threadIdx.x) / TileType::rows; slot < tile.used;
         slot += blockDim.x / TileType::rows)
      tile.at(slot, row) = (tile.at(slot, row) - m) * sigma;
    sync_block();
  }
}

// From T to both factors, in place. A factor of weight 0 is 1, whatever T is. Ends with a barrier.
template <typename TileType>
__device__ void factor_tile(const TileType& tile, typename TileType::acc lam) {
  using acc_t = typename TileType::acc;
  sync_block();
  const int row = threadIdx.x % TileType::rows;
  const acc_t rest = partner_weight(lam);
  for (int32_t slot = int32_t(threadIdx.x) / TileType::rows; slot < tile.used + kExtraSlots;
       slot += blockDim.x / TileType::rows) {
    const acc_t t = tile.at(slot, row);
    tile.at(slot, row) = lam == 0 ? acc_t(1) : exp2_flushed(lam * t);
    tile.at(tile.as_partner(slot), row) = rest == 0 ? acc_t(1) : exp2_flushed(rest * t);
  }
  sync_block();
}

}  // namespace icm
