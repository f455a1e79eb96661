// A tile of logits, transposed: [used class][row], rows of the tile across the lanes. A column of the
// score matrix then needs two plain vector loads, nothing is gathered or scattered (eq. 3), and one
// register of row sums serves the class axis.
#pragma once

#include "convert.h"
#include "icm_loss.h"
#include "transpose.h"

namespace icm::ICM_ISA {

template <typename acc_t, int K>
inline constexpr int kTileRows = K * kLanes<acc_t>;

// K vectors: one value for each row of a tile.
template <typename acc_t, int K>
struct RowVec {
  Vec<acc_t> v[K];
};

template <typename acc_t>
inline constexpr acc_t kInfinity = acc_t(__builtin_huge_val());

template <typename acc_t>
inline constexpr acc_t kLargest = sizeof(acc_t) == 4 ? acc_t(__FLT_MAX__) : acc_t(__DBL_MAX__);

// Whole rows are read in squares where the used classes are dense; few used
// classes among many are gathered one by one (a square costs about 64 B per row and 16 classes).
template <typename scalar_t>
ICM_INLINE bool reads_whole_rows(const Scores<scalar_t>& s) {
  return s.class_stride == 1 && s.columns.used * 8 >= s.classes;
}

// Squares ahead whose logits are fetched: 16 to 64 rows are more streams than a processor follows by itself.
inline constexpr int kAhead = 4;

// Calls visit(slot, k, values) for the logits of rows [row, row + valid): `values` are those of the tile's
// k-th vector of rows for one used class, times `sign`; rows beyond `valid` are zero.
template <typename scalar_t, typename acc_t, int K, typename Visit>
ICM_INLINE void visit_squares(const Scores<scalar_t>& s, int64_t row, int valid, Visit visit) {
  constexpr int L = kLanes<acc_t>;
  // In registers: behind the reference they would be read again after every store, which might alias them.
  const int32_t* slot_of = s.columns.slot_of;
  const scalar_t* logits = s.logits + row * s.row_stride;
  const int64_t classes = s.classes, stride = s.row_stride;
  const IVec<acc_t> flip = (IVec<acc_t>)broadcast(s.sign) ^ (IVec<acc_t>)broadcast(acc_t(1));
  const auto slot = [&](int64_t c) ICM_LAMBDA_INLINE { return slot_of == nullptr ? c : int64_t(slot_of[c]); };
  const auto visit_signed = [&](int64_t u, int k, Vec<acc_t> x) ICM_LAMBDA_INLINE {
    if (u >= 0) visit(u, k, (Vec<acc_t>)((IVec<acc_t>)x ^ flip));
  };
  if (classes < L) {  // a row is part of a vector
    for (int k = 0; k < K; ++k) {
      Vec<acc_t> square[L] = {};
      for (int r = 0; r < L && k * L + r < valid; ++r)
        square[r] = load_first(logits + (k * L + r) * stride, int(classes));
      transpose<acc_t>(square);
      for (int c = 0; c < int(classes); ++c) visit_signed(slot(c), k, square[c]);
    }
    return;
  }
  for (int64_t next = 0; next < classes; next += L) {
    const int64_t c = next + L <= classes ? next : classes - L;  // the last square may overlap
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Vec<acc_t> square[L];
      const scalar_t* first = logits + k * L * stride + c;
      if (valid >= (k + 1) * L) {
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) {
          square[r] = load_acc(first + r * stride);
          __builtin_prefetch(first + r * stride + kAhead * L);
        }
      } else {
        for (int r = 0; r < L; ++r)
          square[r] = k * L + r < valid ? load_acc(first + r * stride) : Vec<acc_t>{};
      }
      transpose<acc_t>(square);
      if (slot_of == nullptr) {
#pragma GCC unroll 16
        for (int q = 0; q < L; ++q) visit_signed(c + q, k, square[q]);
      } else {
        for (int q = 0; q < L; ++q) visit_signed(slot(c + q), k, square[q]);
      }
    }
  }
}

template <typename scalar_t, typename acc_t, int K, typename Visit>
ICM_INLINE void visit_logits(const Scores<scalar_t>& s, int64_t row, int valid, Visit visit) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  if (reads_whole_rows(s)) {
    visit_squares<scalar_t, acc_t, K>(s, row, valid, visit);
    return;
  }
  for (int64_t u = 0; u < s.columns.used; ++u) {
    const scalar_t* first = s.logits + row * s.row_stride + s.columns.present[u] * s.class_stride;
    acc_t values[R];
    for (int r = 0; r < R; ++r) values[r] = r < valid ? to_acc(first[r * s.row_stride]) * s.sign : acc_t(0);
    for (int k = 0; k < K; ++k) visit(u, k, load(values + k * L));
  }
}

// Fills the tile with sign * logits and returns each row's offset M_i, the largest finite value of a used
// class. With no finite one it is -largest, so that -inf still scores -inf and NaN stays NaN.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> load_tile(const Scores<scalar_t>& s, int64_t row, int valid, acc_t* tile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  RowVec<acc_t, K> m;
  for (int k = 0; k < K; ++k) m.v[k] = broadcast(-kLargest<acc_t>);
  visit_logits<scalar_t, acc_t, K>(s, row, valid, [&](int64_t u, int k, Vec<acc_t> x) ICM_LAMBDA_INLINE {
    store(tile + u * R + k * L, x);
  });
  // Not while they are stored: there are no registers left for it, and each maximum would wait for the one before.
  const int64_t used = s.columns.used;
  for (int64_t u = 0; u < used; ++u)
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) m.v[k] = at_least(m.v[k], load(tile + u * R + k * L));  // a NaN drops out
  for (int k = 0; k < K; ++k) {
    store(tile + s.columns.used * R + k * L, Vec<acc_t>{});
    if (any<acc_t>(m.v[k] == kInfinity<acc_t>)) {  // +inf must drop out as well: look again
      m.v[k] = broadcast(-kLargest<acc_t>);
      for (int64_t u = 0; u < s.columns.used; ++u) {
        const Vec<acc_t> x = load(tile + u * R + k * L);
        m.v[k] = at_least(m.v[k], x < kInfinity<acc_t> ? x : m.v[k]);
      }
    }
  }
  return m;
}

// A tile is shallow when no T is NaN, +inf or below min_exponent: a mixed score is at least the smallest T of its
// row. One unit more, because rounding may take a score a little below it.
template <typename acc_t>
inline constexpr acc_t kShallowest = acc_t(Trust<acc_t>::min_exponent + 1);

// T = (S - M) * sigma in place: subtract first (icm_math.h).
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE Depth shift_tile(const Scores<scalar_t>& s, const RowVec<acc_t, K>& m, acc_t* tile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  IVec<acc_t> shallow = ~IVec<acc_t>{};
  const int64_t used = s.columns.used;
  const Vec<acc_t> sigma = broadcast(s.sigma);
  for (int64_t u = 0; u < used; ++u) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      acc_t* p = tile + u * R + k * L;
      const Vec<acc_t> t = (load(p) - m.v[k]) * sigma;
      store(p, t);
      shallow &= (t >= kShallowest<acc_t>)&(t <= acc_t(0));
    }
  }
  return any<acc_t>(~shallow) ? Depth::kAny : Depth::kShallow;
}

// T in one pass, with the offsets that load_tile found before. `raw`, if not null, gets sign * logits.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE Depth load_shifted_tile(const Scores<scalar_t>& s, const RowVec<acc_t, K>& m, int64_t row,
                                   int valid, acc_t* tile, acc_t* raw) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  IVec<acc_t> shallow = ~IVec<acc_t>{};
  visit_logits<scalar_t, acc_t, K>(s, row, valid, [&](int64_t u, int k, Vec<acc_t> x) ICM_LAMBDA_INLINE {
    const Vec<acc_t> t = (x - m.v[k]) * s.sigma;
    store(tile + u * R + k * L, t);
    shallow &= (t >= kShallowest<acc_t>)&(t <= acc_t(0));
    if (raw != nullptr) store(raw + u * R + k * L, x);
  });
  for (int k = 0; k < K; ++k) store(tile + s.columns.used * R + k * L, Vec<acc_t>{});
  return any<acc_t>(~shallow) ? Depth::kAny : Depth::kShallow;
}

// S - m, for a batch that is repaired: of a finite logit it is finite, so that equal masks such as the type's
// lowest number stay equal scores, and two of them can be subtracted.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void load_distances(const Scores<scalar_t>& s, const RowVec<acc_t, K>& m, int64_t row, int valid,
                               acc_t* tile, acc_t* raw) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  const Vec<acc_t> most = broadcast(kLargest<acc_t> / 4);
  visit_logits<scalar_t, acc_t, K>(s, row, valid, [&](int64_t u, int k, Vec<acc_t> x) ICM_LAMBDA_INLINE {
    const Vec<acc_t> t = x - m.v[k];
    const Vec<acc_t> bounded = t > most ? most : t < -most ? -most : t;
    const IVec<acc_t> is_finite = (x > -kInfinity<acc_t>)&(x < kInfinity<acc_t>);
    store(tile + u * R + k * L, is_finite ? bounded : t);
    if (raw != nullptr) store(raw + u * R + k * L, x);
  });
  for (int k = 0; k < K; ++k) store(tile + s.columns.used * R + k * L, Vec<acc_t>{});
}

// x_ij of the tile's rows for column j, eq. 3. `columns` by value: a reference would be reloaded after
// every store, which might alias it.
template <typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> column_scores(Columns<acc_t> columns, const acc_t* tile, int64_t j) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  const acc_t* t_a = tile + int64_t(columns.slot_a[j]) * R;
  const acc_t* t_b = tile + int64_t(columns.slot_b[j]) * R;
  const Vec<acc_t> w_a = broadcast(columns.w_a[j]), w_b = broadcast(columns.w_b[j]);
  RowVec<acc_t, K> x;
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) x.v[k] = mixed_score(w_a, load(t_a + k * L), w_b, load(t_b + k * L), Fma{});
  return x;
}

// x of each row's own column; rows beyond `valid` get 0.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> diagonal_scores(const Scores<scalar_t>& s, int64_t row, int valid,
                                            const acc_t* tile) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  acc_t t_a[R] = {}, t_b[R] = {}, w_a[R] = {}, w_b[R] = {};
  for (int r = 0; r < valid; ++r) {
    const int64_t j = s.diagonal + row + r;
    t_a[r] = tile[int64_t(s.columns.slot_a[j]) * R + r];
    t_b[r] = tile[int64_t(s.columns.slot_b[j]) * R + r];
    w_a[r] = s.columns.w_a[j];
    w_b[r] = s.columns.w_b[j];
  }
  RowVec<acc_t, K> x;
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
    x.v[k] = mixed_score(load(w_a + k * L), load(t_a + k * L), load(w_b + k * L), load(t_b + k * L), Fma{});
  return x;
}

// All rows of a tile for one class.
template <typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> load_rows_of(const acc_t* values) {
  RowVec<acc_t, K> v;
  for (int k = 0; k < K; ++k) v.v[k] = load(values + k * kLanes<acc_t>);
  return v;
}

template <typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> load_rows(const acc_t* values, int valid) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  acc_t padded[R] = {};
  for (int r = 0; r < valid; ++r) padded[r] = values[r];
  RowVec<acc_t, K> v;
  for (int k = 0; k < K; ++k) v.v[k] = load(padded + k * L);
  return v;
}

template <typename acc_t, int K>
ICM_INLINE void store_rows(const RowVec<acc_t, K>& v, acc_t* values, int valid) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  acc_t padded[R];
  for (int k = 0; k < K; ++k) store(padded + k * L, v.v[k]);
  for (int r = 0; r < valid; ++r) values[r] = padded[r];
}

// Transposes a gradient tile back into rows of dlogits, rounding once. Classes that no column uses
// get zero.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void store_tile(const Scores<scalar_t>& s, const acc_t* tile, int64_t row, int valid,
                           scalar_t* dlogits) {
  constexpr int L = kLanes<acc_t>, R = kTileRows<acc_t, K>;
  const Columns<acc_t> columns = s.columns;
  const int64_t classes = s.classes;
  scalar_t* first = dlogits + row * classes;
  if (columns.used * 8 < classes) {
    __builtin_memset(first, 0, sizeof(scalar_t) * size_t(valid) * size_t(classes));
    for (int64_t u = 0; u < columns.used; ++u)
      for (int r = 0; r < valid; ++r) from_acc(tile[u * R + r], first + r * classes + columns.present[u]);
    return;
  }
  const auto of_class = [&](int64_t c, int k) ICM_LAMBDA_INLINE {
    const int64_t u = columns.slot_of == nullptr ? c : int64_t(columns.slot_of[c]);
    return u >= 0 ? load(tile + u * R + k * L) : Vec<acc_t>{};
  };
  if (classes < L) {
    for (int k = 0; k < K; ++k) {
      Vec<acc_t> square[L] = {};
      for (int c = 0; c < int(classes); ++c) square[c] = of_class(c, k);
      transpose<acc_t>(square);
      for (int r = 0; r < L && k * L + r < valid; ++r)
        store_first(first + (k * L + r) * classes, int(classes), square[r]);
    }
    return;
  }
  for (int64_t next = 0; next < classes; next += L) {
    const int64_t c = next + L <= classes ? next : classes - L;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Vec<acc_t> square[L];
      if (columns.slot_of == nullptr) {
#pragma GCC unroll 16
        for (int q = 0; q < L; ++q) square[q] = load(tile + (c + q) * R + k * L);
      } else {
        for (int q = 0; q < L; ++q) square[q] = of_class(c + q, k);
      }
      transpose<acc_t>(square);
      if (valid >= (k + 1) * L) {
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) store_acc(first + (k * L + r) * classes + c, square[r]);
      } else {
        for (int r = 0; r < L && k * L + r < valid; ++r)
          store_acc(first + (k * L + r) * classes + c, square[r]);
      }
    }
  }
}

}  // namespace icm::ICM_ISA
