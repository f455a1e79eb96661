// The repair of sums that lost what they consist of to underflow: exact maxima of every row and column,
// then sums relative to them, with an exponential per axis.
//
// A score is formed twice, relative to its row's offset for the class axis and to an offset from the middle of
// the batch for the pair axis: relative to its own largest logit a row would lose the digits of scores far
// below it, which a column may need. Distances to the maximum are multiplied by sigma last. Both passes form
// the scores by the same expression, so that no score exceeds its maximum by rounding.
#pragma once

#include "icm_loss_rows.h"

namespace icm::ICM_ISA {

template <typename scalar_t>
inline void maxima(const Scores<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                   RowSums<acc_type<scalar_t>> rows, acc_type<scalar_t> column_offset,
                   acc_type<scalar_t>* column_shift) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* accumulators = buffers.second;
  fill_columns(accumulators, s.columns.count, -kInfinity<acc_t>);

  for_each_tile(s, 0, begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count;
    load_repair_tiles<scalar_t, acc_t, K>(s, buffers, rows.offset, column_offset, row, valid, nullptr);
    const RowVec<acc_t, K> is_valid = valid_rows<acc_t, K>(valid);
    RowVec<acc_t, K> largest_score;
    for (int k = 0; k < K; ++k) largest_score.v[k] = broadcast(-kInfinity<acc_t>);
    for (int64_t j = 0; j < s.columns.count; ++j) {
      const RowVec<acc_t, K> x = column_scores<acc_t, K>(s.columns, buffers.tile, j);
      const RowVec<acc_t, K> y = column_scores<acc_t, K>(s.columns, buffers.column_tile, j);
      Vec<acc_t> column = load(accumulators + j * L);
      for (int k = 0; k < K; ++k) {  // NaN compares false and drops out; the sums will show it
        largest_score.v[k] = x.v[k] > largest_score.v[k] ? x.v[k] : largest_score.v[k];
        column = (y.v[k] > column) & (is_valid.v[k] != acc_t(0)) ? y.v[k] : column;
      }
      store(accumulators + j * L, column);
    }
    store_rows(largest_score, rows.shift + row, valid);
  });
  for (int64_t j = 0; j < s.columns.count; ++j) {
    acc_t result = -kInfinity<acc_t>;
    for (int k = 0; k < L; ++k) result = accumulators[j * L + k] > result ? accumulators[j * L + k] : result;
    column_shift[j] = result;
  }
}

template <typename scalar_t>
inline void shifted_sums(const Scores<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                         RowSums<acc_type<scalar_t>> rows, LogSum<acc_type<scalar_t>> columns,
                         Diagonal<acc_type<scalar_t>> diagonal, acc_type<scalar_t>* column_sum) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* accumulators = buffers.second;
  fill_columns(accumulators, s.columns.count, acc_t(0));

  for_each_tile(s, 0, begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count;
    load_repair_tiles<scalar_t, acc_t, K>(s, buffers, rows.offset, columns.offset[0], row, valid, nullptr);
    const RowVec<acc_t, K> row_shift = load_rows<acc_t, K>(rows.shift + row, valid);
    const RowVec<acc_t, K> is_valid = valid_rows<acc_t, K>(valid);
    RowVec<acc_t, K> r = {};
    for (int64_t j = 0; j < s.columns.count; ++j) {
      const RowVec<acc_t, K> x = column_scores<acc_t, K>(s.columns, buffers.tile, j);
      const RowVec<acc_t, K> y = column_scores<acc_t, K>(s.columns, buffers.column_tile, j);
      Vec<acc_t> column = load(accumulators + j * L);
      const IVec<acc_t> all_masked = broadcast(columns.shift[j]) == -kInfinity<acc_t>;
      for (int k = 0; k < K; ++k) {
        r.v[k] += exp2<acc_t>((x.v[k] - row_shift.v[k]) * s.sigma);
        const Vec<acc_t> e = exp2<acc_t>((y.v[k] - columns.shift[j]) * s.sigma);
        // A column of -inf alone has the sum 0, which other processes can add to theirs.
        const IVec<acc_t> counts = (is_valid.v[k] != acc_t(0)) & ~((y.v[k] == -kInfinity<acc_t>)&all_masked);
        column += counts ? e : Vec<acc_t>{};
      }
      store(accumulators + j * L, column);
    }
    store_rows(r, rows.sum + row, valid);
    store_rows(diagonal_scores<scalar_t, acc_t, K>(s, row, valid, buffers.tile), diagonal.row + row, valid);
    store_rows(diagonal_scores<scalar_t, acc_t, K>(s, row, valid, buffers.column_tile), diagonal.column + row,
               valid);
  });
  reduce_columns(accumulators, s.columns.count, column_sum);
}

}  // namespace icm::ICM_ISA
