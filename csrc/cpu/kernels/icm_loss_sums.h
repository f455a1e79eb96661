// Row and column sums of exponentials, eq. 5 and 7: one exponential per score serves both axes.
#pragma once

#include "icm_loss_factors.h"

namespace icm::ICM_ISA {

// The exponentials of a tile of T.
template <Depth depth, typename acc_t>
struct Exponentials {
  const acc_t *w_a, *w_b;

  template <int K>
  ICM_INLINE void operator()(int64_t j, const RowVec<acc_t, K>& t_a, const RowVec<acc_t, K>& t_b,
                             RowVec<acc_t, K>& e, RowVec<acc_t, K>& partial) const {
    const Vec<acc_t> a = broadcast(w_a[j]), b = broadcast(w_b[j]);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      e.v[k] = exp2<acc_t, depth>(mixed_score(a, t_a.v[k], b, t_b.v[k], Fma{}));
      partial.v[k] += e.v[k];
    }
  }
};

// Adds a tile's exponentials to the column accumulators and returns their sums along the rows. `exponentials` forms
// them from what the tiles hold for a column's two classes.
template <typename acc_t, int K, typename Form>
ICM_INLINE RowVec<acc_t, K> add_rows(SortedColumns<acc_t> columns, const acc_t* tile_a, const acc_t* tile_b,
                                     const Form& exponentials, RowVec<acc_t, K> w, acc_t* accumulators,
                                     RowsAhead next) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  RowVec<acc_t, K> r = {};
  for (int64_t block = 0; block < columns.count; block += kBlock) {
    const int64_t last = block + kBlock < columns.count ? block + kBlock : columns.count;
    RowVec<acc_t, K> partial = {};
    // No loop over a first class: its ends would cost more than its loads, which the first-level cache serves.
    for (int64_t j = block; j < last; ++j) {
      const RowVec<acc_t, K> of_a = load_rows_of<acc_t, K>(tile_a + int64_t(columns.slot_a[j]) * R);
      const RowVec<acc_t, K> of_b = load_rows_of<acc_t, K>(tile_b + int64_t(columns.slot_b[j]) * R);
      Vec<acc_t> column = load(accumulators + j * L);
      RowVec<acc_t, K> e;
      exponentials(j, of_a, of_b, e, partial);
      next.fetch();
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) column = fma(w.v[k], e.v[k], column);
      store(accumulators + j * L, column);
    }
    for (int k = 0; k < K; ++k) r.v[k] += partial.v[k];
  }
  return r;
}

template <typename scalar_t, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> add_tile(const Scores<scalar_t>& s, const Scratch<scalar_t>& buffers, Depth depth,
                                     RowVec<acc_t, K> w, const RowsAhead& next) {
  const auto add = [&](const acc_t* tile_a, const auto& form) ICM_LAMBDA_INLINE {
    return add_rows<acc_t, K>(s.sorted, tile_a, buffers.tile, form, w, buffers.second, next);
  };
  const acc_t *w_a = s.sorted.w_a, *w_b = s.sorted.w_b;
  if (s.sorted.factored) return add(buffers.column_tile, Products<acc_t>{w_a});
  if (depth == Depth::kShallow) return add(buffers.tile, Exponentials<Depth::kShallow, acc_t>{w_a, w_b});
  return add(buffers.tile, Exponentials<Depth::kAny, acc_t>{w_a, w_b});
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
  const int64_t count = s.sorted.count;
  fill_columns(accumulators, count, acc_t(0));
  acc_t offset = 0;

  const auto sum_tile = [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
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

    RowVec<acc_t, K> own = diagonal_scores<scalar_t, acc_t, K>(s, row, valid, tile);
    store_rows(own, diagonal.row + row, valid);
    if (s.sorted.factored) {
      form_factors<acc_t, K>(s.sorted, s.columns.used, depth, tile, buffers.column_tile);
      own = own_products<scalar_t, acc_t, K>(s, row, valid, buffers.column_tile, tile);
    } else {
      for (int k = 0; k < K; ++k) own.v[k] = exp2<acc_t>(own.v[k]);
    }
    store_rows(own, diagonal.exponential + row, valid);
    const RowsAhead next = next_logits(s, row + K * L, K * L, end);
    store_rows(add_tile<scalar_t, acc_t, K>(s, buffers, depth, w, next), rows.sum + row, valid);
    store_rows(m, rows.offset + row, valid);
    store_rows(w, rows.weight + row, valid);
  };
  for_each_tile(s, kMostClassesOfWideSums, begin, end, sum_tile);
  for (int64_t i = begin; i < end; ++i) rows.shift[i] = 0;
  reduce_columns(accumulators, count, column_sum);
  *column_offset = offset;
}

}  // namespace icm::ICM_ISA
