// Gradient with respect to the logits, a tile of rows at a time:
//
//   dZ[i,j] = g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own])           P = e alpha_i,  Q = e w_i beta_j
//   dS[i,c] = sum_j dZ[i,j] Y[j,c]                                 two vector additions per column
#pragma once

#include "icm_loss_rows.h"

namespace icm::ICM_ISA {

// dZ of one vector of rows for a batch that was repaired: a score and an exponential per axis. An axis that is
// not asked for is left out: 0 times its exponential may be NaN.
template <typename acc_t>
struct RepairedScores {
  bool class_axis, pair_axis;
  acc_t sigma;
  Columns<acc_t> columns;
  const acc_t* column_tile;
  const acc_t* column_shift;

  template <int K>
  ICM_INLINE Vec<acc_t> operator()(Vec<acc_t> x, int k, int64_t j, const RowVec<acc_t, K>& alpha,
                                   Vec<acc_t> beta, const RowVec<acc_t, K>& row_shift) const {
    Vec<acc_t> dz = {};
    if (class_axis) dz += exp2<acc_t>((x - row_shift.v[k]) * sigma) * alpha.v[k];
    if (pair_axis && beta[0] != acc_t(0)) {  // every lane holds the same
      const Vec<acc_t> y = column_scores<acc_t, K>(columns, column_tile, j).v[k];
      dz += exp2<acc_t>((y - column_shift[j]) * sigma) * beta;
    }
    return dz;
  }
};

// dZ otherwise: one exponential for both.
template <Depth depth, typename acc_t>
struct SharedScores {
  template <int K>
  ICM_INLINE Vec<acc_t> operator()(Vec<acc_t> x, int k, int64_t, const RowVec<acc_t, K>& alpha,
                                   Vec<acc_t> beta, const RowVec<acc_t, K>& w) const {
    return exp2<acc_t, depth>(x) * fma(w.v[k], beta, alpha.v[k]);
  }
};

// Adds the columns' part of dZ to the gradient tile. `of_row`: row weights, or shifts after a repair.
template <typename acc_t, int K, typename DScores>
ICM_INLINE void add_columns(Columns<acc_t> columns, const acc_t* column_factor, const DScores& dscores,
                            const RowVec<acc_t, K>& alpha, const RowVec<acc_t, K>& of_row, const acc_t* tile,
                            acc_t* dtile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  for (int64_t j = 0; j < columns.count; ++j) {
    const RowVec<acc_t, K> x = column_scores<acc_t, K>(columns, tile, j);
    const Vec<acc_t> beta = broadcast(column_factor[j]);
    const Vec<acc_t> w_a = broadcast(columns.w_a[j]), w_b = broadcast(columns.w_b[j]);
    acc_t* d_a = dtile + int64_t(columns.slot_a[j]) * R;
    acc_t* d_b = dtile + int64_t(columns.slot_b[j]) * R;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const Vec<acc_t> dz = dscores(x.v[k], k, j, alpha, beta, of_row);
      store(d_a + k * L, fma(w_a, dz, load(d_a + k * L)));
      store(d_b + k * L, fma(w_b, dz, load(d_b + k * L)));
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

  for_each_tile<acc_t>(begin, end, [&](auto vectors, int64_t row, int valid) ICM_LAMBDA_INLINE {
    constexpr int K = decltype(vectors)::count, R = kTileRows<acc_t, K>;
    const RowVec<acc_t, K> m = load_rows<acc_t, K>(rows.offset + row, valid);
    const RowVec<acc_t, K> alpha = load_rows<acc_t, K>(g.row_factor + row, valid);
    __builtin_memset(dtile, 0, sizeof(acc_t) * size_t(s.columns.used + 1) * R);
    const auto add = [&](const auto& dscores, const acc_t* of_row) ICM_LAMBDA_INLINE {
      add_columns<acc_t, K>(s.columns, g.column_factor, dscores, alpha,
                            load_rows<acc_t, K>(of_row + row, valid), tile, dtile);
    };
    if (g.repaired) {
      load_repair_tiles<scalar_t, acc_t, K>(s, buffers, rows.offset, columns.offset[0], row, valid, raw);
      add(RepairedScores<acc_t>{g.class_axis, g.pair_axis, s.sigma, s.columns, buffers.column_tile,
                                columns.shift},
          rows.shift);
    } else if (load_shifted_tile<scalar_t, acc_t, K>(s, m, row, valid, tile, raw) == Depth::kShallow) {
      add(SharedScores<Depth::kShallow, acc_t>{}, rows.weight);
    } else {
      add(SharedScores<Depth::kAny, acc_t>{}, rows.weight);
    }
    subtract_target<scalar_t, acc_t, K>(s, g, row, valid, dtile);
    if (g.dscale != nullptr) scale_gradient<scalar_t, acc_t, K>(s, raw, dtile, row, valid, g.dscale);
    if (g.unit != acc_t(1) || s.scale != acc_t(1))  // one after the other: their product may overflow
      for (int64_t u = 0; u < s.columns.used * R; u += L)
        store(dtile + u, load(dtile + u) * g.unit * s.scale);
    store_tile<scalar_t, acc_t, K>(s, dtile, row, valid, g.dlogits);
  });
}

}  // namespace icm::ICM_ISA
