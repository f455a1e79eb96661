// A tile of logits in shared memory, and the passes over it that the sums are made of.
//
// Warp-wide layout: with kRows rows in a tile, lane = row + kRows * side; the 32 / kRows sides take neighbouring
// columns. A block of 32 columns takes kRows steps; the sums over rows of its 32 columns then come out of kRows - 1
// shuffles, one column to each lane.
#pragma once

#include "icm_loss_problem.h"

namespace icm {

// With one lam for the batch (kFactored) a tile holds exponentials instead of T, one for each role of a class:
// e_ij = 2^(lam T[i,a_j]) * 2^((1 - lam) T[i,b_j]), so that a column costs a product and no exponential. If e is not
// tiny neither factor is: both are at most 1.
template <typename acc_t, int kRows, bool kFactored = false>
struct Tile {
  // An odd distance between slots: both lanes = classes (when a row is loaded) and lanes = rows are free of conflicts.
  // Two rows are a pair, packed: an odd distance would cost half as much memory again.
  static constexpr int stride = kRows <= 2 ? kRows : kRows + 1;
  static constexpr int sides = kWarp / kRows;
  static constexpr int rows = kRows;
  static constexpr bool factored = kFactored;
  using acc = acc_t;

  acc_t* values;
  int32_t used;

  static ICM_HOST_DEVICE int64_t size(int64_t slots) {
    return (kFactored ? 2 : 1) * (slots + kExtraSlots) * stride;
  }
  __device__ __forceinline__ acc_t& at(int32_t slot, int row) const { return values[slot * stride + row]; }
  // The factor of a class in role b.
  __device__ __forceinline__ acc_t& partner_at(int32_t slot, int row) const {
    return at(used + kExtraSlots + slot, row);
  }
};

template <int kRows>
__device__ __forceinline__ int lane_row() {
  return lane_index() % kRows;
}
template <int kRows>
__device__ __forceinline__ int lane_side() {
  return lane_index() / kRows;
}
// The column of a block of 32 whose sum over rows a lane ends up with.
template <int kRows>
__device__ __forceinline__ int lane_column() {
  return lane_row<kRows>() * (kWarp / kRows) + lane_side<kRows>();
}

struct Fma {
  template <typename acc_t>
  __device__ __forceinline__ acc_t operator()(acc_t a, acc_t b, acc_t c) const {
    return fused_multiply_add(a, b, c);
  }
};

// x of one column for one row, eq. 3.
template <typename acc_t, int kRows, bool kFactored>
__device__ __forceinline__ acc_t score(const Tile<acc_t, kRows, kFactored>& tile, const Column<acc_t>& column,
                                       int row) {
  return mixed_score(column.w_a, tile.at(column.slot_a, row), column.w_b, tile.at(column.slot_b, row), Fma());
}

// 2^x of one column for one row.
template <typename acc_t, int kRows, bool kFactored>
__device__ __forceinline__ acc_t exponential(const Tile<acc_t, kRows, kFactored>& tile,
                                             const Column<acc_t>& column, int row) {
  if constexpr (kFactored) {  // both factors of a pure class, whose slot_b is the zero slot, are its own
    const int32_t slot_b = column.w_b == acc_t(0) ? column.slot_a : column.slot_b;
    return tile.at(column.slot_a, row) * tile.partner_at(slot_b, row);
  }
  return exp2_flushed(score(tile, column, row));
}

// For a repaired batch, whose tile holds logits: S - m, kept finite for finite S, so that equal masks such as the
// type's lowest number stay equal scores, and two of them can be subtracted.
template <typename acc_t>
__device__ __forceinline__ acc_t distance(acc_t s, acc_t m) {
  constexpr acc_t most = largest_finite<acc_t>() / 4;
  const acc_t t = s - m;
  if (!(s > -infinity<acc_t>() && s < infinity<acc_t>())) return t;
  return t > most ? most : t < -most ? -most : t;
}
template <typename acc_t, int kRows, bool kFactored>
__device__ __forceinline__ acc_t distance_score(const Tile<acc_t, kRows, kFactored>& tile,
                                                const Column<acc_t>& column, int row, acc_t m) {
  return mixed_score(column.w_a, distance(tile.at(column.slot_a, row), m), column.w_b,
                     distance(tile.at(column.slot_b, row), m), Fma());
}

// Combines v[k] over the rows' lanes, for every k: lane row k of each side gets the result of v[k]. Recursive, so that
// every index is a constant: nvcc does not unroll a loop whose count is halved, and v would go to memory.
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

// Combines over the sides: every lane of a row gets the same result.
template <int kRows, typename acc_t, typename Combine>
__device__ __forceinline__ acc_t combine_sides(acc_t value, Combine combine) {
#pragma unroll
  for (int width = kRows; width < kWarp; width *= 2) value = combine(value, shuffle_xor(value, width));
  return value;
}

template <typename acc_t, typename scalar_t, int kRows, bool kFactored>
__device__ void load_rows_as(const Logits& logits, acc_t sign, const int32_t* present, int64_t row0,
                             int valid, const Tile<acc_t, kRows, kFactored>& tile, acc_t* part_max) {
  constexpr int kBatch = 8;  // loads in flight
  const scalar_t* values = static_cast<const scalar_t*>(logits.values);
  const int parts = warp_count() > kRows ? warp_count() / kRows : 1, lane = lane_index();
  const int32_t range = ((tile.used + parts - 1) / parts + kWarp - 1) / kWarp * kWarp;
  for (int item = warp_index(); item < kRows * parts; item += warp_count()) {
    const int row = item % kRows, part = item / kRows;
    const scalar_t* from = values + (row0 + (row < valid ? row : 0)) * logits.row_stride;
    const int32_t end = (part + 1) * range < tile.used ? (part + 1) * range : tile.used;
    acc_t largest = -largest_finite<acc_t>();
    for (int32_t begin = part * range; begin < end; begin += kBatch * kWarp) {
      acc_t batch[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int32_t slot = begin + k * kWarp + lane;
        batch[k] = slot < end && row < valid
                       ? to_acc(from[int64_t(present[slot]) * logits.class_stride]) * sign
                       : acc_t(0);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int32_t slot = begin + k * kWarp + lane;
        if (slot >= end) continue;
        tile.at(slot, row) = batch[k];
        if (batch[k] > largest && batch[k] < infinity<acc_t>()) largest = batch[k];
      }
    }
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2)
      largest = Larger()(largest, shuffle_xor(largest, width));
    if (lane == 0) part_max[part * kRows + row] = row < valid ? largest : acc_t(0);
  }
}

// Words of `part_max` that load_tile needs.
ICM_HOST_DEVICE int load_scratch(int warps, int rows) { return warps > rows ? warps : rows; }

// Fills a tile with sign * logits; rows beyond `valid` with 0. Then offset[row], if not null, is M_i: the largest
// finite logit of a used class, or with no finite one -largest, so that -inf still scores -inf and NaN stays NaN.
// Ends with a barrier.
template <typename acc_t, int kRows, bool kFactored>
__device__ void load_tile(const Logits& logits, acc_t sign, const int32_t* present, int64_t row0, int valid,
                          const Tile<acc_t, kRows, kFactored>& tile, acc_t* part_max, acc_t* offset) {
  if constexpr (sizeof(acc_t) == 8) {
    load_rows_as<acc_t, double>(logits, sign, present, row0, valid, tile, part_max);
  } else {
    switch (logits.type) {
      case LogitType::kBFloat16:
        load_rows_as<acc_t, bfloat16>(logits, sign, present, row0, valid, tile, part_max);
        break;
      case LogitType::kFloat16:
        load_rows_as<acc_t, float16>(logits, sign, present, row0, valid, tile, part_max);
        break;
      default:
        load_rows_as<acc_t, float>(logits, sign, present, row0, valid, tile, part_max);
    }
  }
  for (int k = threadIdx.x; k < kExtraSlots * kRows; k += blockDim.x)
    tile.at(tile.used + k / kRows, k % kRows) = k / kRows == kPaddingSlot ? -infinity<acc_t>() : acc_t(0);
  sync_block();
  if (offset == nullptr) return;
  const int parts = warp_count() > kRows ? warp_count() / kRows : 1;
  if (threadIdx.x < kRows) {
    acc_t largest = part_max[threadIdx.x];
    for (int part = 1; part < parts; ++part)
      largest = Larger()(largest, part_max[part * kRows + threadIdx.x]);
    offset[threadIdx.x] = largest;
  }
  sync_block();
}

// T = (S - M) * sigma in place: subtract first (icm_math.h). Ends with a barrier.
template <typename acc_t, int kRows, bool kFactored>
__device__ void shift_tile(const Tile<acc_t, kRows, kFactored>& tile, const acc_t* offset, acc_t sigma) {
  const int row = threadIdx.x % kRows;
  const acc_t m = offset[row];
  for (int32_t slot = int32_t(threadIdx.x) / kRows; slot < tile.used; slot += blockDim.x / kRows)
    tile.at(slot, row) = (tile.at(slot, row) - m) * sigma;
  sync_block();
}

// From T to both factors, in place. A factor of weight 0 is 1, whatever T is. Ends with a barrier.
template <typename acc_t, int kRows, bool kFactored>
__device__ void factor_tile(const Tile<acc_t, kRows, kFactored>& tile, acc_t lam) {
  if constexpr (!kFactored) return;
  sync_block();
  const int row = threadIdx.x % kRows;
  const acc_t rest = partner_weight(lam);
  for (int32_t slot = int32_t(threadIdx.x) / kRows; slot < tile.used + kExtraSlots;
       slot += blockDim.x / kRows) {
    const acc_t t = tile.at(slot, row);
    tile.at(slot, row) = lam == 0 ? acc_t(1) : exp2_flushed(lam * t);
    tile.partner_at(slot, row) = rest == 0 ? acc_t(1) : exp2_flushed(rest * t);
  }
  sync_block();
}

// Exponentials of a block of 32 columns: returns their sum for this lane's row and side; *column_sum is that of
// lane_column() over the tile's rows, weighted by w (this lane's row).
template <typename acc_t, int kRows, bool kFactored>
__device__ __forceinline__ acc_t sum_block(const Tile<acc_t, kRows, kFactored>& tile,
                                           const Column<acc_t>* columns, acc_t w, acc_t* column_sum) {
  const int row = lane_row<kRows>(), side = lane_side<kRows>();
  acc_t weighted[kRows], row_sum = 0;
#pragma unroll
  for (int step = 0; step < kRows; ++step) {
    const acc_t e = exponential(tile, columns[step * tile.sides + side], row);
    row_sum += e;
    weighted[step] = w * e;
  }
  *column_sum = combine_rows<kRows>(weighted, Add());
  return row_sum;
}

// Calls visit(block, first column) for this warp's blocks of columns.
template <typename Visit>
__device__ __forceinline__ void for_each_block(int64_t columns, Visit visit) {
  const int64_t blocks = column_blocks(columns);
  for (int64_t block = warp_index(); block < blocks; block += warp_count()) visit(block * kWarp);
}

// Combines what each warp has for each row and gives it to the first kRows threads of the block, in `result`.
// `scratch`: kRows words for each warp. Ends with a barrier.
template <int kRows, typename acc_t, typename Combine>
__device__ void combine_warps(acc_t value, acc_t* scratch, acc_t* result, Combine combine) {
  value = combine_sides<kRows>(value, combine);
  if (lane_side<kRows>() == 0) scratch[warp_index() * kRows + lane_row<kRows>()] = value;
  sync_block();
  if (threadIdx.x < kRows) {
    acc_t combined = scratch[threadIdx.x];
    for (int warp = 1; warp < warp_count(); ++warp)
      combined = combine(combined, scratch[warp * kRows + threadIdx.x]);
    result[threadIdx.x] = combined;
  }
  sync_block();
}

}  // namespace icm
