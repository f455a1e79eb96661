// The repair of sums that lost what they consist of to underflow: exact maxima of every row and column, then sums
// relative to them, with an exponential per axis.
//
// A score is formed twice, relative to its row's offset for the class axis and to an offset from the middle of the
// batch for the pair axis: relative to its own largest logit a row would lose the digits of scores far below it, which
// a column may need. The tiles hold logits; distances to the maximum are multiplied by sigma last.
#pragma once

#include "sums.h"

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

// Visits this warp's columns: visit(column index, row of the lane, x, y), then reduces over rows with `combine` what it
// returned and gives (column of this lane, result) to `finish`.
template <typename TileType, typename Visit, typename Combine, typename Finish>
__device__ void visit_distances(const Forward<typename TileType::acc>& f, const TileType& tile,
                                const typename TileType::PerRowOfLane& m, typename TileType::acc common,
                                Visit visit, Combine combine, Finish finish) {
  using acc_t = typename TileType::acc;
  const int row0 = lane_row<TileType>() * TileType::pack;
  for_each_block(f.labels.count, [&](int64_t j0) {
    acc_t values[TileType::lanes];
#pragma unroll
    for (int step = 0; step < TileType::lanes; ++step) {
      const int64_t j = j0 + step * TileType::sides + lane_side<TileType>();
      const Column<acc_t> column = f.plan.columns[j];
#pragma unroll
      for (int p = 0; p < TileType::pack; ++p) {
        const acc_t value = visit(j, p, distance_score(tile, column, row0 + p, m.of[p]),
                                  distance_score(tile, column, row0 + p, common));
        values[step] = p == 0 ? value : combine(values[step], value);
      }
    }
    finish(j0 + lane_column<TileType>(), combine_rows<TileType::lanes>(values, combine));
  });
}

// What is known of the rows of a lane, 0 for those beyond the last.
template <typename TileType>
__device__ __forceinline__ typename TileType::PerRowOfLane rows_of_lane(const typename TileType::acc* values,
                                                                        int64_t row0, int valid) {
  using acc_t = typename TileType::acc;
  return for_rows<TileType>([&](int row) { return row < valid ? values[row0 + row] : acc_t(0); });
}

// Maxima of one tile's rows and of the columns over the worker's tiles so far.
template <typename TileType>
__device__ void maxima_of_tile(const Forward<typename TileType::acc>& f, const TileType& tile,
                               const Shared<TileType>& shared, int64_t row0, int valid,
                               typename TileType::acc common, bool first, typename TileType::acc* partial) {
  using acc_t = typename TileType::acc;
  const int lane_row0 = lane_row<TileType>() * TileType::pack;
  auto largest = for_rows<TileType>([](int) { return -infinity<acc_t>(); });
  visit_distances(
      f, tile, rows_of_lane<TileType>(f.rows.offset, row0, valid), common,
      [&](int64_t, int p, acc_t x, acc_t y) {
        largest.of[p] = Larger()(largest.of[p], x);
        return lane_row0 + p < valid && y > -infinity<acc_t>() ? y : -infinity<acc_t>();
      },
      Larger(), [&](int64_t j, acc_t column) { partial[j] = first ? column : Larger()(partial[j], column); });
  combine_warps<TileType::lanes>(largest, shared.row_scratch, shared.row, Larger());
  if (int(threadIdx.x) < valid) f.rows.shift[row0 + threadIdx.x] = shared.row[threadIdx.x];
}

template <typename TileType>
__device__ void shifted_sums_of_tile(const Forward<typename TileType::acc>& f, const TileType& tile,
                                     const Shared<TileType>& shared, int64_t row0, int valid,
                                     typename TileType::acc common, typename TileType::acc sigma, bool first,
                                     typename TileType::acc* partial) {
  using acc_t = typename TileType::acc;
  const int lane_row0 = lane_row<TileType>() * TileType::pack;
  const auto row_shift = rows_of_lane<TileType>(f.rows.shift, row0, valid);
  auto row_sums = for_rows<TileType>([](int) { return acc_t(0); });
  visit_distances(
      f, tile, rows_of_lane<TileType>(f.rows.offset, row0, valid), common,
      [&](int64_t j, int p, acc_t x, acc_t y) {
        if (j >= f.labels.count) return acc_t(0);
        row_sums.of[p] += exp2_flushed((x - row_shift.of[p]) * sigma);
        // A column of -inf alone has the sum 0, which other processes can add to theirs.
        const acc_t shift = f.columns.shift[j];
        return lane_row0 + p < valid && !(shift == -infinity<acc_t>() && y == shift)
                   ? exp2_flushed((y - shift) * sigma)
                   : acc_t(0);
      },
      Add(), [&](int64_t j, acc_t column) { partial[j] = first ? column : partial[j] + column; });
  combine_warps<TileType::lanes>(row_sums, shared.row_scratch, shared.row, Add());
  if (int(threadIdx.x) < valid) {
    const int64_t i = row0 + threadIdx.x;
    const Column<acc_t>& own = f.plan.columns[f.logits.diagonal + i];
    f.rows.sum[i] = shared.row[threadIdx.x];
    f.rows.weight[i] = not_a_number<acc_t>();  // the mark of a repair
    f.scratch.row_score[i] = distance_score(tile, own, int(threadIdx.x), f.rows.offset[i]);
    f.scratch.column_score[i] = distance_score(tile, own, int(threadIdx.x), common);
  }
}

// All sums again, relative to exact maxima, whatever the range of the logits. Leaves logits in the tile, the sums of
// this block's terms in `sums`, and no barrier of the group after them.
template <typename Group, typename TileType, typename PartialOf>
__device__ void repair(const Forward<typename TileType::acc>& f, const Share& share, const Slice& slice,
                       const Scale<typename TileType::acc>& scale, const TileType& tile,
                       const Shared<TileType>& shared, typename TileType::acc* own, PartialOf partial_of,
                       double (&sums)[2]) {
  using acc_t = typename TileType::acc;
  constexpr int kRows = TileType::rows;
  const acc_t common = median_offset(f.rows.offset, f.logits.rows, shared.counters);
  const auto for_each_tile = [&](auto body) {
    for (int64_t t = share.worker; t < share.tiles && share.worker < share.workers; t += share.workers) {
      const int valid = valid_rows<kRows>(f.logits, t);
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
