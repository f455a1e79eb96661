// The repair of sums that lost what they consist of to underflow: exact maxima of every row and column,
// then sums relative to them, with an exponential per axis. The scores are formed by the same expression
// in both passes, so that no score exceeds its maximum by rounding.
#pragma once

#include "icm_loss_rows.h"

namespace icm::ICM_ISA {

template <typename scalar_t>
inline void maxima(const Scores<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                   acc_type<scalar_t> global_offset, LogSum<acc_type<scalar_t>> rows,
                   acc_type<scalar_t>* column_shift) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* tile = buffers.tile;
  acc_t* accumulators = buffers.second;
  fill_columns(accumulators, s.columns.count, -kInfinity<acc_t>);

  for_each_tile<acc_t>(begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count;
    const RowVec<acc_t, K> m = load_rows<acc_t, K>(rows.offset + row, valid);
    load_shifted_tile<scalar_t, acc_t, K>(s, m, row, valid, tile, nullptr);
    RowVec<acc_t, K> c = to_column_domain(s, m, global_offset);
    acc_t lanes[kTileRows<acc_t, K>];
    store_rows(c, lanes, kTileRows<acc_t, K>);
    for (int r = valid; r < kTileRows<acc_t, K>; ++r) lanes[r] = -kInfinity<acc_t>;
    for (int k = 0; k < K; ++k) c.v[k] = load(lanes + k * L);
    RowVec<acc_t, K> largest_score;
    for (int k = 0; k < K; ++k) largest_score.v[k] = broadcast(-kInfinity<acc_t>);
    for (int64_t j = 0; j < s.columns.count; ++j) {
      const RowVec<acc_t, K> x = column_scores<acc_t, K>(s.columns, tile, j);
      Vec<acc_t> column = load(accumulators + j * L);
      for (int k = 0; k < K; ++k) {  // NaN compares false and drops out; the sums will show it
        largest_score.v[k] = x.v[k] > largest_score.v[k] ? x.v[k] : largest_score.v[k];
        const Vec<acc_t> y = x.v[k] + c.v[k];
        column = y > column ? y : column;
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
                         LogSum<acc_type<scalar_t>> rows, LogSum<acc_type<scalar_t>> columns,
                         acc_type<scalar_t>* column_sum) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* tile = buffers.tile;
  acc_t* accumulators = buffers.second;
  fill_columns(accumulators, s.columns.count, acc_t(0));

  for_each_tile<acc_t>(begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count, R = kTileRows<acc_t, K>;
    const RowVec<acc_t, K> m = load_rows<acc_t, K>(rows.offset + row, valid);
    load_shifted_tile<scalar_t, acc_t, K>(s, m, row, valid, tile, nullptr);
    const RowVec<acc_t, K> c = to_column_domain(s, m, columns.offset[0]);
    const RowVec<acc_t, K> row_shift = load_rows<acc_t, K>(rows.shift + row, valid);
    acc_t ones[R];
    for (int r = 0; r < R; ++r) ones[r] = acc_t(1);
    const RowVec<acc_t, K> is_valid = load_rows<acc_t, K>(ones, valid);
    RowVec<acc_t, K> r = {};
    for (int64_t j = 0; j < s.columns.count; ++j) {
      const RowVec<acc_t, K> x = column_scores<acc_t, K>(s.columns, tile, j);
      Vec<acc_t> column = load(accumulators + j * L);
      for (int k = 0; k < K; ++k) {
        r.v[k] += exp2<acc_t>(x.v[k] - row_shift.v[k]);
        const Vec<acc_t> e = exp2<acc_t>(x.v[k] + c.v[k] - columns.shift[j]);
        column += is_valid.v[k] != acc_t(0) ? e : Vec<acc_t>{};
      }
      store(accumulators + j * L, column);
    }
    store_rows(r, rows.sum + row, valid);
  });
  reduce_columns(accumulators, s.columns.count, column_sum);
}

}  // namespace icm::ICM_ISA
