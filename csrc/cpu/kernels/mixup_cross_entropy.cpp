// Cross-entropy against mixed targets on the CPU: loss terms and gradient of rows of logits.
//
// Equations in ../../row_loss_math.h. Parallel over rows, which do not depend on each other; the classes of a row lie
// across the lanes. Traffic: logits once per pass, gradient once; targets are two labels a row, never one-hot.
#include "mixup_cross_entropy.h"

#include "softmax.h"

namespace icm::ICM_ISA {
namespace {

// Calls body(first element) for a row whose classes are contiguous: its own, or a widened copy.
template <typename scalar_t, typename Body>
ICM_INLINE void with_row(const SoftTargets<scalar_t>& s, int64_t i, acc_type<scalar_t>* scratch, Body body) {
  const scalar_t* first = s.logits + i * s.row_stride;
  if (s.class_stride == 1) {
    body(first);
    return;
  }
  for (int64_t c = 0; c < s.classes; ++c) scratch[c] = to_acc(first[c * s.class_stride]);
  body(static_cast<const acc_type<scalar_t>*>(scratch));
}

// Calls first(row, r) and then(row, r) for `count` rows: of short rows the first for some of them before the others, so
// that the processor has another row to work on while it waits for the end of one.
template <typename scalar_t, typename First, typename Then>
ICM_INLINE void for_each_group(const SoftTargets<scalar_t>& s, int64_t begin, int count,
                               acc_type<scalar_t>* scratch, First first, Then then) {
  constexpr int64_t kCached = 16 << 10;  // bytes that stay in the first-level cache
  const int64_t row_bytes = s.classes * int64_t(sizeof(scalar_t));
  const int step = s.class_stride == 1 && 4 * row_bytes <= kCached ? 4 : 1;
  for (int r = 0; r < count; r += step) {
    const int end = r + step < count ? r + step : count;
    if (step == 1) {
      with_row(s, begin + r, scratch, [&](const auto* x) ICM_LAMBDA_INLINE {
        first(x, r);
        then(x, r);
      });
      continue;
    }
    const scalar_t* x = s.logits + (begin + r) * s.row_stride;
    for (int k = r; k < end; ++k) first(x + (k - r) * s.row_stride, k);
    for (int k = r; k < end; ++k) then(x + (k - r) * s.row_stride, k);
  }
}

template <bool kSmoothed, typename scalar_t>
void terms_of(const SoftTargets<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
              RowStats<acc_type<scalar_t>> stats, acc_type<scalar_t>* term) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  for (int64_t row = begin; row < end; row += L) {
    const int valid = int(end - row < L ? end - row : L);
    acc_t sum[L] = {}, smoothed[L] = {}, t_a[L] = {}, t_b[L] = {};
    const auto sums_of = [&](const auto* x, int r) ICM_LAMBDA_INLINE {
      const acc_t m = stats.maximum[row + r];
      const RowSum<acc_t> sums = row_sum<kSmoothed>(x, s.classes, m, s.smoothing);
      stats.sum[row + r] = sum[r] = sums.sum;
      smoothed[r] = sums.smoothed;
      t_a[r] = shifted(to_acc(x[s.class_a[row + r]]), m);
      t_b[r] = shifted(to_acc(x[s.class_b[row + r]]), m);
    };
    for_each_group(
        s, row, valid, scratch,
        [&](const auto* x, int r) ICM_LAMBDA_INLINE { stats.maximum[row + r] = row_maximum(x, s.classes); },
        sums_of);
    const auto negative_log = [&](const acc_t* t) ICM_LAMBDA_INLINE {
      return log_ratio<acc_t>(load(sum), exp2<acc_t>(load(t)), load(t));
    };
    const Vec<acc_t> a = negative_log(t_a), b = negative_log(t_b);
    const Vec<acc_t> uniform = log2<acc_t>(load(sum)) * s.total_smoothing - load(smoothed);
    for (int r = 0; r < valid; ++r) {
      const int64_t i = row + r;
      acc_t total = s.weight_a[i] * a[r];
      if (s.class_a[i] != s.class_b[i]) total += s.weight_b[i] * b[r];
      if constexpr (kSmoothed) total += uniform[r];
      term[i] = total * acc_t(kLn2);
    }
  }
}

template <typename scalar_t>
void terms(const SoftTargets<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
           RowStats<acc_type<scalar_t>> stats, acc_type<scalar_t>* term) {
  if (s.smoothing != nullptr)
    terms_of<true>(s, begin, end, scratch, stats, term);
  else
    terms_of<false>(s, begin, end, scratch, stats, term);
}

// W p - u of every class but the row's own two, which still lack their part of u.
template <bool kSmoothed, typename source_t, typename scalar_t, typename acc_t>
ICM_INLINE void softmax_part(const source_t* x, int64_t classes, acc_t m, acc_t factor,
                             const acc_t* smoothing, acc_t g, scalar_t* out) {
  for_each_vector(x, classes, [&](int64_t c, Vec<acc_t> v, IVec<acc_t>) ICM_LAMBDA_INLINE {
    Vec<acc_t> d = exp2<acc_t>(shifted(v, m)) * factor;
    if constexpr (kSmoothed) d -= load(smoothing + c) * g;
    store_in_row(out, classes, c, d);
  });
}

template <bool kSmoothed, typename scalar_t>
void gradient_of(const SoftTargets<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
                 RowStats<acc_type<scalar_t>> stats, const acc_type<scalar_t>* grad, scalar_t* dlogits) {
  using acc_t = acc_type<scalar_t>;
  for (int64_t i = begin; i < end; ++i)
    with_row(s, i, scratch, [&](const auto* x) ICM_LAMBDA_INLINE {
      const int64_t a = s.class_a[i], b = s.class_b[i];
      const acc_t weight_a = s.weight_a[i], weight_b = a == b ? acc_t(0) : s.weight_b[i];
      const acc_t g = grad[i], m = stats.maximum[i];
      const acc_t factor = g * (weight_a + weight_b + s.total_smoothing) / stats.sum[i];
      scalar_t* out = dlogits + i * s.classes;
      softmax_part<kSmoothed>(x, s.classes, m, factor, s.smoothing, g, out);
      // The own classes again, from the logits: p - q is formed before it is rounded.
      acc_t own[kLanes<acc_t>] = {to_acc(x[a]), to_acc(x[b])};
      const Vec<acc_t> e = exp2<acc_t>(shifted(load(own), m));
      const acc_t u_a = weight_a + (kSmoothed ? s.smoothing[a] : acc_t(0));
      from_acc(e[0] * factor - g * u_a, out + a);
      if (a == b) return;
      const acc_t u_b = weight_b + (kSmoothed ? s.smoothing[b] : acc_t(0));
      from_acc(e[1] * factor - g * u_b, out + b);
    });
}

template <typename scalar_t>
void gradient(const SoftTargets<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
              RowStats<acc_type<scalar_t>> stats, const acc_type<scalar_t>* grad, scalar_t* dlogits) {
  if (s.smoothing != nullptr)
    gradient_of<true>(s, begin, end, scratch, stats, grad, dlogits);
  else
    gradient_of<false>(s, begin, end, scratch, stats, grad, dlogits);
}

template <typename scalar_t>
constexpr MixupCrossEntropyKernels<scalar_t> table() {
  return {terms<scalar_t>, gradient<scalar_t>};
}

}  // namespace

extern const MixupCrossEntropyKernels<float> mixup_cross_entropy_float = table<float>();
extern const MixupCrossEntropyKernels<double> mixup_cross_entropy_double = table<double>();
extern const MixupCrossEntropyKernels<bfloat16> mixup_cross_entropy_bfloat16 = table<bfloat16>();
extern const MixupCrossEntropyKernels<float16> mixup_cross_entropy_float16 = table<float16>();

}  // namespace icm::ICM_ISA
