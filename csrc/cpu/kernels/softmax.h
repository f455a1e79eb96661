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
  if (count >= kLanes<acc_type<scalar_t>>)
    store_acc(row + position, v);
  else
    store_first(row, int(count), v);
}

// The larger of v and m; m where v is NaN: with a NaN the instruction returns its second operand.
ICM_INLINE Vec<float> larger(Vec<float> v, Vec<float> m) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)v, (__m512)m);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)v, (__m256)m);
#else
  return v > m ? v : m;
#endif
}
ICM_INLINE Vec<double> larger(Vec<double> v, Vec<double> m) { return v > m ? v : m; }

// Of lanes without NaN.
template <typename acc_t>
ICM_INLINE acc_t largest_lane(Vec<acc_t> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(acc_t) == 4) return _mm512_reduce_max_ps((__m512)v);
#endif
  acc_t lanes[kLanes<acc_t>];
  store(lanes, v);
#pragma GCC unroll 16
  for (int width = kLanes<acc_t> / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) lanes[k] = lanes[k + width] > lanes[k] ? lanes[k + width] : lanes[k];
  return lanes[0];
}

// The largest element: NaN drops out, the sum will show it. With no other it is -inf, and so is then
// the whole row -inf or NaN: its sum is NaN, as that of a row with +inf.
template <typename scalar_t>
ICM_INLINE acc_type<scalar_t> row_maximum(const scalar_t* x, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  const Vec<acc_t> least = broadcast(-acc_t(__builtin_huge_val()));
  Vec<acc_t> m = least;
  for_each_vector(x, count, [&](int64_t, Vec<acc_t> v, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    m = larger(select<acc_t>(keep, v, least), m);
  });
  return largest_lane<acc_t>(m);
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
