// What the losses share: the logarithm of a softmax entry (../../softmax_math.h), and the passes over one row of
// logits of the cross-entropies. A row is read from memory once per operation: its maximum first, then, from cache,
// its exponentials.
#pragma once

#include "../../softmax_math.h"
#include "convert.h"

namespace icm::ICM_ISA {

template <typename acc_t>
struct Log2 {
  ICM_INLINE Vec<acc_t> operator()(Vec<acc_t> x) const { return log2<acc_t>(x); }
};

template <typename acc_t>
ICM_INLINE Vec<acc_t> log_ratio(Vec<acc_t> sum, Vec<acc_t> target, Vec<acc_t> d) {
  return icm::log_ratio<acc_t>(sum, target, d, Log2<acc_t>{});
}

// Set in lanes [first, last).
template <typename acc_t>
ICM_INLINE IVec<acc_t> lanes_between(int first, int last) {
  IVec<acc_t> lane = {};
#pragma GCC unroll 16
  for (int k = 0; k < kLanes<acc_t>; ++k) lane[k] = k;
  return (lane >= first) & (lane < last);
}

// The first `count` lanes, the others 0.
template <typename scalar_t>
ICM_INLINE Vec<acc_type<scalar_t>> load_first(const scalar_t* x, int count) {
  using acc_t = acc_type<scalar_t>;
  acc_t lanes[kLanes<acc_t>] = {};
  for (int k = 0; k < count; ++k) lanes[k] = to_acc(x[k]);
  return load(lanes);
}

// The vector at `position` of a row of `count` elements, as for_each_vector visits it.
template <typename scalar_t>
ICM_INLINE Vec<acc_type<scalar_t>> load_in_row(const scalar_t* row, int64_t count, int64_t position) {
  return count >= kLanes<acc_type<scalar_t>> ? load_acc(row + position) : load_first(row, int(count));
}

// Calls body(position, vector, keep) for a row of `count` elements. `keep` is clear in lanes that are
// padding or were visited before: the last vector of a long row overlaps the one before it.
template <typename scalar_t, typename Body>
ICM_INLINE void for_each_vector(const scalar_t* x, int64_t count, Body body) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  int64_t c = 0;
  for (; c + L <= count; c += L) body(c, load_acc(x + c), ~IVec<acc_t>{});
  if (c == count) return;
  if (count > L) {
    body(count - L, load_acc(x + count - L), lanes_between<acc_t>(L - int(count - c), L));
    return;
  }
  body(0, load_first(x, int(count)), lanes_between<acc_t>(0, int(count)));
}

// Stores the vector at `position` of a row of `count` elements.
template <typename scalar_t>
ICM_INLINE void store_in_row(scalar_t* row, int64_t count, int64_t position, Vec<acc_type<scalar_t>> v) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  if (count >= L) {
    store_acc(row + position, v);
    return;
  }
  acc_t lanes[L];
  store(lanes, v);
  for (int k = 0; k < int(count); ++k) from_acc(lanes[k], row + k);
}

// The largest element: NaN drops out, the sum will show it. With no other it is -inf, and so is then
// the whole row -inf or NaN: its sum is NaN, as that of a row with +inf.
template <typename scalar_t>
ICM_INLINE acc_type<scalar_t> row_maximum(const scalar_t* x, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  Vec<acc_t> m = broadcast(-acc_t(__builtin_huge_val()));
  for_each_vector(x, count, [&](int64_t, Vec<acc_t> v, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    m = (v > m) & keep ? v : m;
  });
  acc_t lanes[kLanes<acc_t>], result;
  store(lanes, m);
  result = lanes[0];
  for (int k = 1; k < kLanes<acc_t>; ++k) result = lanes[k] > result ? lanes[k] : result;
  return result;
}

template <typename acc_t>
struct RowSum {
  acc_t sum;       // of 2^T
  acc_t smoothed;  // of smoothing * T
};

template <bool kSmoothed, typename scalar_t, typename acc_t>
ICM_INLINE RowSum<acc_t> row_sum(const scalar_t* x, int64_t count, acc_t maximum, const acc_t* smoothing) {
  Vec<acc_t> sum = {}, smoothed = {};
  for_each_vector(x, count, [&](int64_t c, Vec<acc_t> v, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    const Vec<acc_t> t = shifted(v, maximum);
    sum += select<acc_t>(keep, exp2<acc_t>(t), Vec<acc_t>{});
    if constexpr (kSmoothed) smoothed += select<acc_t>(keep, load(smoothing + c) * t, Vec<acc_t>{});
  });
  return {sum_lanes<acc_t>(sum), kSmoothed ? sum_lanes<acc_t>(smoothed) : acc_t(0)};
}

}  // namespace icm::ICM_ISA
