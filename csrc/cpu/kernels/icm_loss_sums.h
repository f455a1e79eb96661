// Row and column sums of exponentials, eq. 5 and 7: one exponential per score serves both axes.
#pragma once

#include "icm_loss_rows.h"

namespace icm::ICM_ISA {

// Adds a tile's exponentials to the column accumulators and returns their sums along the rows.
template <Depth depth, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> add_rows(Columns<acc_t> columns, const acc_t* tile, RowVec<acc_t, K> w,
                                     acc_t* accumulators) {
  constexpr int L = kLanes<acc_t>;
  RowVec<acc_t, K> r = {};
  for (int64_t block = 0; block < columns.count; block += kBlock) {
    const int64_t last = block + kBlock < columns.count ? block + kBlock : columns.count;
    RowVec<acc_t, K> partial = {};
    for (int64_t j = block; j < last; ++j) {
      const RowVec<acc_t, K> x = column_scores<acc_t, K>(columns, tile, j);
      Vec<acc_t> column = load(accumulators + j * L);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const Vec<acc_t> e = exp2<acc_t, depth>(x.v[k]);
        partial.v[k] += e;
        column = fma(w.v[k], e, column);
      }
      store(accumulators + j * L, column);
    }
    for (int k = 0; k < K; ++k) r.v[k] += partial.v[k];
  }
  return r;
}

template <typename scalar_t>
inline void sums(const Scores<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                 RowSums<acc_type<scalar_t>> rows, Diagonal<acc_type<scalar_t>> diagonal,
                 acc_type<scalar_t>* column_sum, acc_type<scalar_t>* column_offset) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* tile = buffers.tile;
  acc_t* accumulators = buffers.second;
  const Columns<acc_t> columns = s.columns;
  const int64_t count = columns.count;
  fill_columns(accumulators, count, acc_t(0));
  acc_t offset = 0;

  for_each_tile<acc_t>(begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count;
    const RowVec<acc_t, K> m = load_tile<scalar_t, acc_t, K>(s, row, valid, tile);
    const Depth depth = shift_tile<scalar_t, acc_t, K>(s, m, tile);

    // The column sums are relative to the first tile's largest offset, until one exceeds it by much.
    const acc_t tile_offset = largest(m, valid);
    if (row == begin) offset = tile_offset;
    if ((tile_offset - offset) * s.sigma > acc_t(kOffsetSlack)) {
      const acc_t factor = exp2_scalar((offset - tile_offset) * s.sigma);
      for (int64_t j = 0; j < count; ++j) store(accumulators + j * L, load(accumulators + j * L) * factor);
      for (int64_t i = begin; i < row; ++i) rows.weight[i] *= factor;
      offset = tile_offset;
    }
    const RowVec<acc_t, K> w = row_weights<scalar_t, acc_t, K>(s, m, offset, valid);

    const RowVec<acc_t, K> r = depth == Depth::kShallow
                                   ? add_rows<Depth::kShallow, acc_t, K>(columns, tile, w, accumulators)
                                   : add_rows<Depth::kAny, acc_t, K>(columns, tile, w, accumulators);
    store_rows(m, rows.offset + row, valid);
    store_rows(r, rows.sum + row, valid);
    store_rows(w, rows.weight + row, valid);
    store_rows(diagonal_scores<scalar_t, acc_t, K>(s, row, valid, tile), diagonal.row + row, valid);
  });
  for (int64_t i = begin; i < end; ++i) rows.shift[i] = 0;
  reduce_columns(accumulators, count, column_sum);
  *column_offset = offset;
}

}  // namespace icm::ICM_ISA
