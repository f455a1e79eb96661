// Batches with one lam, factored: 2^(w_a T_a + w_b T_b) = 2^(w_a T_a) 2^(w_b T_b) (eq. 3 and 5), the factors formed
// once per class and tile.
//
// Both factors are at most 1, so where the product is not lost to underflow neither of them is: the guard of the sums
// is that of the exponentials. A batch that is repaired is taken column by column.
#pragma once

#include "icm_loss_rows.h"

namespace icm::ICM_ISA {

template <Depth depth, typename acc_t, int K>
ICM_INLINE void form_factors_of(SortedColumns<acc_t> columns, int64_t used, acc_t* tile, acc_t* first) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  for (int64_t u = 0; u < (used + 1) * R; u += L) {
    const Vec<acc_t> t = load(tile + u);
    store(first + u, exp2<acc_t, depth>(t * columns.factor_a));
    store(tile + u, exp2<acc_t, depth>(t * columns.factor_b));
  }
}

// From the tile of T the factors of each class as first class, in `first`, and as second, in its place. No product of
// a weight and T is deeper than T.
template <typename acc_t, int K>
ICM_INLINE void form_factors(SortedColumns<acc_t> columns, int64_t used, Depth depth, acc_t* tile,
                             acc_t* first) {
  if (depth == Depth::kShallow)
    form_factors_of<Depth::kShallow, acc_t, K>(columns, used, tile, first);
  else
    form_factors_of<Depth::kAny, acc_t, K>(columns, used, tile, first);
}

// The exponential of each row's own class, with the bits that it has in the sums.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> own_products(const Scores<scalar_t>& s, int64_t row, int valid,
                                         const acc_t* first, const acc_t* second) {
  constexpr int R = kTileRows<acc_t, K>;
  acc_t own[R] = {};
  for (int r = 0; r < valid; ++r) {
    const int64_t j = s.diagonal + row + r;
    const int64_t a = s.columns.slot_a[j], b = s.sorted.slot_b[s.sorted.of_column[j]];
    own[r] = first[a * R + r] * second[b * R + r];
  }
  return load_rows_of<acc_t, K>(own);
}

// The exponentials of tiles of factors; each counts as often as it has columns.
template <typename acc_t>
struct Products {
  const acc_t* multiplicity;

  template <int K>
  ICM_INLINE void operator()(int64_t j, const RowVec<acc_t, K>& e_a, const RowVec<acc_t, K>& e_b,
                             RowVec<acc_t, K>& e, RowVec<acc_t, K>& partial) const {
    const Vec<acc_t> many = broadcast(multiplicity[j]);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      e.v[k] = e_a.v[k] * e_b.v[k];
      partial.v[k] = fma(many, e.v[k], partial.v[k]);
    }
  }
};

// Adds the columns' part of dZ to the gradient tile: to the second class at once, to the first when all its columns
// have been seen.
template <typename acc_t, int K>
ICM_INLINE void add_factored_columns(SortedColumns<acc_t> columns, const acc_t* column_factor,
                                     const RowVec<acc_t, K>& alpha, const RowVec<acc_t, K>& w,
                                     const acc_t* first, const acc_t* second, acc_t* dtile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  for (int64_t a = 0; a < columns.firsts; ++a) {
    const int64_t at = int64_t(columns.slot_a[columns.begin[a]]) * R;
    const RowVec<acc_t, K> e_a = load_rows_of<acc_t, K>(first + at);
    RowVec<acc_t, K> of_b, sum = {};
    for (int k = 0; k < K; ++k) of_b.v[k] = e_a.v[k] * columns.factor_b;
    for (int64_t j = columns.begin[a]; j < columns.begin[a + 1]; ++j) {
      const int64_t slot = int64_t(columns.slot_b[j]) * R;
      const Vec<acc_t> beta = broadcast(column_factor[j]), many = broadcast(columns.w_a[j]);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        acc_t* d_b = dtile + slot + k * L;
        const Vec<acc_t> part = fma(w.v[k], beta, many * alpha.v[k]) * load(second + slot + k * L);
        sum.v[k] += part;
        store(d_b, fma(of_b.v[k], part, load(d_b)));
      }
    }
    for (int k = 0; k < K; ++k) {
      acc_t* d_a = dtile + at + k * L;
      store(d_a, fma(e_a.v[k] * columns.factor_a, sum.v[k], load(d_a)));
    }
  }
}

}  // namespace icm::ICM_ISA
