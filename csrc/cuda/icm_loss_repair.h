// The repair of sums that lost what they consist of to underflow: exact maxima of every row and column, then sums
// relative to them, with an exponential per axis.
//
// A score is formed twice, relative to its row's offset for the class axis and to an offset from the middle of the
// batch for the pair axis: relative to its own largest logit a row would lose the digits of scores far below it, which
// a column may need. The tiles hold logits; distances to the maximum are multiplied by sigma last.
#pragma once

#include "icm_loss_sums.h"

namespace icm {

// The middle of the rows' offsets, found by every block for itself: one image far from the others must not cost the
// others their digits. Rows without a finite logit have none. A radix selection, 8 bits a pass. `histogram`: 257
// words. Ends with a barrier.
template <typename acc_t>
__device__ acc_t median_offset(const acc_t* offsets, int64_t count, int32_t* histogram) {
  using Bits = std::conditional_t<sizeof(acc_t) == 4, uint32_t, uint64_t>;
  constexpr Bits sign = Bits(1) << (8 * sizeof(acc_t) - 1);
  const auto bits_of = [](acc_t value) {  // ascending with the value
    const Bits bits = to_bits(value);
    return (bits & sign) != 0 ? Bits(~bits) : Bits(bits | sign);
  };
  Bits prefix = 0, mask = 0;
  int64_t rank = -1;
  for (int shift = 8 * int(sizeof(acc_t)) - 8; shift >= 0; shift -= 8) {
    for (int k = threadIdx.x; k < 256; k += blockDim.x) histogram[k] = 0;
    sync_block();
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
      if (offsets[i] > -largest_finite<acc_t>() && (bits_of(offsets[i]) & mask) == prefix)
        atomicAdd(histogram + int((bits_of(offsets[i]) >> shift) & 255), 1);
    sync_block();
    int64_t total = 0;
    for (int k = 0; k < 256; ++k) total += histogram[k];
    if (total == 0) return 0;  // the same for every thread; the first pass only
    if (rank < 0) rank = total / 2;
    int digit = 0;
    while (rank >= histogram[digit]) rank -= histogram[digit++];
    prefix |= Bits(digit) << shift;
    mask |= Bits(255) << shift;
    sync_block();
  }
  return from_bits<acc_t>((prefix & sign) != 0 ? Bits(prefix & ~sign) : Bits(~prefix));
}

// Visits this warp's columns: visit(column index, x, y, step), then reduces over rows with `combine` what it returned
// and gives (column of this lane, result) to `finish`.
template <typename acc_t, int kRows, bool kFactored, typename Visit, typename Combine, typename Finish>
__device__ void visit_distances(const Forward<acc_t>& f, const Tile<acc_t, kRows, kFactored>& tile, acc_t m,
                                acc_t common, Visit visit, Combine combine, Finish finish) {
  const int row = lane_row<kRows>(), side = lane_side<kRows>();
  for_each_block(f.labels.count, [&](int64_t j0) {
    acc_t values[kRows];
#pragma unroll
    for (int step = 0; step < kRows; ++step) {
      const int64_t j = j0 + step * tile.sides + side;
      const Column<acc_t> column = f.plan.columns[j];
      values[step] =
          visit(j, distance_score(tile, column, row, m), distance_score(tile, column, row, common));
    }
    finish(j0 + lane_column<kRows>(), combine_rows<kRows>(values, combine));
  });
}

// Maxima of one tile's rows and of the columns over the worker's tiles so far.
template <typename acc_t, int kRows, bool kFactored>
__device__ void maxima_of_tile(const Forward<acc_t>& f, const Tile<acc_t, kRows, kFactored>& tile,
                               const Shared<acc_t, kRows>& shared, int64_t row0, int valid, acc_t common,
                               bool first, acc_t* partial) {
  const int row = lane_row<kRows>();
  const bool is_valid = row < valid;
  const acc_t m = is_valid ? f.rows.offset[row0 + row] : acc_t(0);
  acc_t largest = -infinity<acc_t>();
  visit_distances(
      f, tile, m, common,
      [&](int64_t, acc_t x, acc_t y) {
        largest = Larger()(largest, x);
        return is_valid && y > -infinity<acc_t>() ? y : -infinity<acc_t>();
      },
      Larger(), [&](int64_t j, acc_t column) { partial[j] = first ? column : Larger()(partial[j], column); });
  combine_warps<kRows>(largest, shared.row_scratch, shared.row, Larger());
  if (int(threadIdx.x) < valid) f.rows.shift[row0 + threadIdx.x] = shared.row[threadIdx.x];
}

template <typename acc_t, int kRows, bool kFactored>
__device__ void shifted_sums_of_tile(const Forward<acc_t>& f, const Tile<acc_t, kRows, kFactored>& tile,
                                     const Shared<acc_t, kRows>& shared, int64_t row0, int valid,
                                     acc_t common, acc_t sigma, bool first, acc_t* partial) {
  const int row = lane_row<kRows>();
  const bool is_valid = row < valid;
  const acc_t m = is_valid ? f.rows.offset[row0 + row] : acc_t(0);
  const acc_t row_shift = is_valid ? f.rows.shift[row0 + row] : acc_t(0);
  acc_t row_sum = 0;
  visit_distances(
      f, tile, m, common,
      [&](int64_t j, acc_t x, acc_t y) {
        if (j >= f.labels.count) return acc_t(0);
        row_sum += exp2_flushed((x - row_shift) * sigma);
        // A column of -inf alone has the sum 0, which other processes can add to theirs.
        const acc_t shift = f.columns.shift[j];
        return is_valid && !(shift == -infinity<acc_t>() && y == shift) ? exp2_flushed((y - shift) * sigma)
                                                                        : acc_t(0);
      },
      Add(), [&](int64_t j, acc_t column) { partial[j] = first ? column : partial[j] + column; });
  combine_warps<kRows>(row_sum, shared.row_scratch, shared.row, Add());
  if (int(threadIdx.x) < valid) {
    const int64_t i = row0 + threadIdx.x;
    const Column<acc_t>& own = f.plan.columns[f.logits.diagonal + i];
    f.rows.sum[i] = shared.row[threadIdx.x];
    f.rows.weight[i] = not_a_number<acc_t>();  // the mark of a repair
    f.scratch.row_score[i] = distance_score(tile, own, int(threadIdx.x), m);
    f.scratch.column_score[i] = distance_score(tile, own, int(threadIdx.x), common);
  }
}

// All sums again, relative to exact maxima, whatever the range of the logits. Leaves logits in the tile, the sums of
// this block's terms in `sums`, and no barrier of the group after them.
template <typename Group, typename acc_t, int kRows, bool kFactored, typename PartialOf>
__device__ void repair(const Forward<acc_t>& f, const Share& share, const Slice& slice,
                       const Scale<acc_t>& scale, const Tile<acc_t, kRows, kFactored>& tile,
                       const Shared<acc_t, kRows>& shared, acc_t* own, int32_t* histogram,
                       PartialOf partial_of, double (&sums)[2]) {
  const acc_t common = median_offset(f.rows.offset, f.logits.rows, histogram);
  const auto for_each_tile = [&](auto body) {
    for (int64_t t = share.worker; t < share.tiles && share.worker < share.workers; t += share.workers) {
      const int valid = valid_rows<acc_t, kRows>(f.logits, t);
      load_tile(f.logits, scale.sign, f.plan.present, t * kRows, valid, tile, shared.part_max,
                static_cast<acc_t*>(nullptr));
      body(t * kRows, valid, t == share.worker);
      sync_block();
    }
    Group::sync();
  };
  for_each_tile([&](int64_t row0, int valid, bool first) {
    maxima_of_tile(f, tile, shared, row0, valid, common, first, own);
  });
  for (int64_t j = slice.begin + threadIdx.x; j < slice.end; j += blockDim.x) {
    acc_t largest = -infinity<acc_t>();
    for (int worker = 0; worker < share.workers; ++worker) largest = Larger()(largest, partial_of(worker)[j]);
    f.columns.offset[j] = common;
    f.columns.shift[j] = largest;
  }
  Group::sync();
  for_each_tile([&](int64_t row0, int valid, bool first) {
    shifted_sums_of_tile(f, tile, shared, row0, valid, common, scale.sigma, first, own);
  });
  for (int64_t j = slice.begin + threadIdx.x; j < slice.end; j += blockDim.x) {
    acc_t sum = 0;
    for (int worker = 0; worker < share.workers; ++worker) sum += partial_of(worker)[j];
    f.columns.sum[j] = sum;
    const int64_t i = j - f.logits.diagonal;
    if (i < 0 || i >= f.logits.rows) continue;
    const acc_t d = (f.scratch.row_score[i] - f.rows.shift[i]) * scale.sigma;
    const acc_t y = (f.scratch.column_score[i] - f.columns.shift[j]) * scale.sigma;
    add_terms(f.out, image_terms(d, f.rows.sum[i], exp2_flushed(y), y, sum), i, f.logits.rows, sums);
  }
}

}  // namespace icm
