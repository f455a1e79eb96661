// Gradient with respect to the logits, a tile of rows at a time:
//
//   dZ[i,j] = g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own])           P = e alpha_i,  Q = e w_i beta_j
//   dS[i,c] = sum_j dZ[i,j] Y[j,c]                                 to a column's second class at once, to its
//                                                                first when all columns of that class are done
#pragma once

#include "icm_loss_factors.h"

namespace icm::ICM_ISA {

// Adds the columns' part of dZ to the gradient tile, one exponential for both axes.
template <Depth depth, typename acc_t, int K>
ICM_INLINE void add_columns(SortedColumns<acc_t> columns, const acc_t* column_factor,
                            const RowVec<acc_t, K>& alpha, const RowVec<acc_t, K>& w, const acc_t* tile,
                            acc_t* dtile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  for (int64_t a = 0; a < columns.firsts; ++a) {
    const int64_t at = int64_t(columns.slot_a[columns.begin[a]]) * R;
    const RowVec<acc_t, K> t_a = load_rows_of<acc_t, K>(tile + at);
    RowVec<acc_t, K> sum = {};
    for (int64_t j = columns.begin[a]; j < columns.begin[a + 1]; ++j) {
      const int64_t slot = int64_t(columns.slot_b[j]) * R;
      const Vec<acc_t> beta = broadcast(column_factor[j]);
      const Vec<acc_t> w_a = broadcast(columns.w_a[j]), w_b = broadcast(columns.w_b[j]);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        acc_t* d_b = dtile + slot + k * L;
        const Vec<acc_t> x = mixed_score(w_a, t_a.v[k], w_b, load(tile + slot + k * L), Fma{});
        const Vec<acc_t> dz = exp2<acc_t, depth>(x) * fma(w.v[k], beta, alpha.v[k]);
        sum.v[k] = fma(w_a, dz, sum.v[k]);
        store(d_b, fma(w_b, dz, load(d_b)));
      }
    }
    for (int k = 0; k < K; ++k) store(dtile + at + k * L, load(dtile + at + k * L) + sum.v[k]);
  }
}

// The same for a batch that was repaired: a score and an exponential per axis. An axis that is not asked for is left
// out: 0 times its exponential may be NaN.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void add_repaired_columns(const Scores<scalar_t>& s, const Gradient<scalar_t>& g,
                                     const acc_t* column_shift, const RowVec<acc_t, K>& alpha,
                                     const RowVec<acc_t, K>& row_shift, const Scratch<scalar_t>& buffers) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  const Columns<acc_t> columns = s.columns;
  for (int64_t j = 0; j < columns.count; ++j) {
    const RowVec<acc_t, K> x = column_scores<acc_t, K>(columns, buffers.tile, j);
    const RowVec<acc_t, K> y = column_scores<acc_t, K>(columns, buffers.column_tile, j);
    const acc_t beta = g.column_factor[j];
    acc_t* d_a = buffers.second + int64_t(columns.slot_a[j]) * R;
    acc_t* d_b = buffers.second + int64_t(columns.slot_b[j]) * R;
    for (int k = 0; k < K; ++k) {
      Vec<acc_t> dz = {};
      if (g.class_axis) dz += exp2<acc_t>((x.v[k] - row_shift.v[k]) * s.sigma) * alpha.v[k];
      if (g.pair_axis && beta != acc_t(0)) dz += exp2<acc_t>((y.v[k] - column_shift[j]) * s.sigma) * beta;
      store(d_a + k * L, fma(broadcast(columns.w_a[j]), dz, load(d_a + k * L)));
      store(d_b + k * L, fma(broadcast(columns.w_b[j]), dz, load(d_b + k * L)));
    }
  }
}

// The target's part: -1 per axis at each image's own column.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void subtract_target(const Scores<scalar_t>& s, const Gradient<scalar_t>& g, int64_t row,
                                int valid, acc_t* dtile) {
  constexpr int R = kTileRows<acc_t, K>;
  for (int r = 0; r < valid; ++r) {
    const int64_t j = s.diagonal + row + r;
    dtile[int64_t(s.columns.slot_a[j]) * R + r] -= s.columns.w_a[j] * g.diagonal_loss[row + r];
    dtile[int64_t(s.columns.slot_b[j]) * R + r] -= s.columns.w_b[j] * g.diagonal_loss[row + r];
  }
}

// dL/dscale of each row: sum_c dS'[i,c] S[i,c]. A class of zero gradient adds nothing, -inf included.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void scale_gradient(const Scores<scalar_t>& s, const acc_t* raw, const acc_t* dtile, int64_t row,
                               int valid, acc_t* dscale) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  RowVec<acc_t, K> sum = {};
  for (int64_t u = 0; u < s.columns.used; ++u)
    for (int k = 0; k < K; ++k) {
      const Vec<acc_t> d = load(dtile + u * R + k * L);
      const Vec<acc_t> product = d * load(raw + u * R + k * L);
      sum.v[k] += d == acc_t(0) ? Vec<acc_t>{} : product;
    }
  for (int k = 0; k < K; ++k) sum.v[k] *= s.sign;
  store_rows(sum, dscale + row, valid);
}

template <typename scalar_t>
inline void gradient(const Scores<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                     RowSums<acc_type<scalar_t>> rows, LogSum<acc_type<scalar_t>> columns,
                     const Gradient<scalar_t>& g) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Scratch<scalar_t> buffers(s, scratch);
  acc_t* tile = buffers.tile;
  acc_t* dtile = buffers.second;
  acc_t* raw = g.dscale != nullptr ? buffers.raw : nullptr;

  const auto differentiate_tile = [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count, R = kTileRows<acc_t, K>;
    const RowVec<acc_t, K> m = load_rows<acc_t, K>(rows.offset + row, valid);
    const RowVec<acc_t, K> alpha = load_rows<acc_t, K>(g.row_factor + row, valid);
    __builtin_memset(dtile, 0, sizeof(acc_t) * size_t(s.columns.used + 1) * R);
    if (g.repaired) {
      load_repair_tiles<scalar_t, acc_t, K>(s, buffers, rows.offset, columns.offset[0], row, valid, raw);
      const RowVec<acc_t, K> row_shift = load_rows<acc_t, K>(rows.shift + row, valid);
      add_repaired_columns<scalar_t, acc_t, K>(s, g, columns.shift, alpha, row_shift, buffers);
    } else {
      const Depth depth = load_shifted_tile<scalar_t, acc_t, K>(s, m, row, valid, tile, raw);
      const RowVec<acc_t, K> w = load_rows<acc_t, K>(rows.weight + row, valid);
      if (s.sorted.factored) {
        form_factors<acc_t, K>(s.sorted, s.columns.used, depth, tile, buffers.column_tile);
        add_factored_columns<acc_t, K>(s.sorted, g.column_factor, alpha, w, buffers.column_tile, tile, dtile);
      } else if (depth == Depth::kShallow) {
        add_columns<Depth::kShallow, acc_t, K>(s.sorted, g.column_factor, alpha, w, tile, dtile);
      } else {
        add_columns<Depth::kAny, acc_t, K>(s.sorted, g.column_factor, alpha, w, tile, dtile);
      }
    }
    subtract_target<scalar_t, acc_t, K>(s, g, row, valid, dtile);
    if (g.dscale != nullptr) scale_gradient<scalar_t, acc_t, K>(s, raw, dtile, row, valid, g.dscale);
    if (g.unit != acc_t(1) || s.scale != acc_t(1))  // one after the other: their product may overflow
      for (int64_t u = 0; u < s.columns.used * R; u += L)
        store(dtile + u, load(dtile + u) * g.unit * s.scale);
    store_tile<scalar_t, acc_t, K>(s, dtile, row, valid, g.dlogits);
  };
  for_each_tile(s, kMostClassesOfWideGradient, begin, end, differentiate_tile);
}

}  // namespace icm::ICM_ISA
