// Asymptotic Midpoint Mixup on the CPU: cross-entropy of rows of logits mixed with their partners.
//
// Equations in ../../row_loss_math.h. Parallel over rows. A mixed row exists only in scratch: the gradient forms it
// again, once for the row itself and once for its partner, instead of keeping (B, C) of them. Deterministic: own part
// first, then the sources in ascending order.
#include "am_mixup_loss.h"

#include "softmax.h"

namespace icm::ICM_ISA {
namespace {

template <typename scalar_t>
int64_t padded_classes(const MixedRows<scalar_t>& s) {
  return (s.classes + 15) / 16 * 16;
}

template <typename scalar_t>
int64_t scratch_size(const MixedRows<scalar_t>& s) {
  return 2 * padded_classes(s);  // a mixed row and a gradient row
}

// M_i; a row of weight 0 is not read.
template <typename scalar_t, typename acc_t>
ICM_INLINE void mix_row(const MixedRows<scalar_t>& s, int64_t i, acc_t* mixed) {
  const acc_t w = s.own_weight[i], rest = partner_weight(w);
  const scalar_t* own = s.logits + (w == acc_t(0) ? s.partner[i] : i) * s.row_stride;
  const scalar_t* partner = s.logits + s.partner[i] * s.row_stride;
  const bool alone = w == acc_t(0) || rest == acc_t(0);
  if (s.class_stride != 1) {
    for (int64_t c = 0; c < s.classes; ++c) {
      const acc_t x = to_acc(own[c * s.class_stride]);
      mixed[c] = alone ? x : w * x + rest * to_acc(partner[c * s.class_stride]);
    }
    return;
  }
  for_each_vector(own, s.classes, [&](int64_t c, Vec<acc_t> v, IVec<acc_t>) ICM_LAMBDA_INLINE {
    if (!alone) v = fma(broadcast(w), v, load_in_row(partner, s.classes, c) * rest);
    store_in_row(mixed, s.classes, c, v);
  });
}

template <typename scalar_t>
void terms(const MixedRows<scalar_t>& s, int64_t begin, int64_t end, acc_type<scalar_t>* scratch,
           RowStats<acc_type<scalar_t>> stats, acc_type<scalar_t>* term) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  for (int64_t row = begin; row < end; row += L) {
    const int valid = int(end - row < L ? end - row : L);
    acc_t sum[L] = {}, t[L] = {};
    for (int r = 0; r < valid; ++r) {
      const int64_t i = row + r;
      mix_row(s, i, scratch);
      const acc_t m = row_maximum(scratch, s.classes);
      sum[r] = row_sum<false, acc_t, acc_t>(scratch, s.classes, m, nullptr).sum;
      t[r] = shifted(scratch[s.label[i]], m);
      stats.maximum[i] = m;
      stats.sum[i] = sum[r];
    }
    const Vec<acc_t> loss = log_ratio<acc_t>(load(sum), exp2<acc_t>(load(t)), load(t)) * acc_t(kLn2);
    for (int r = 0; r < valid; ++r) term[row + r] = loss[r];
  }
}

// Adds g (p_i - onehot) to `out`.
template <typename scalar_t, typename acc_t>
ICM_INLINE void add_mixed_gradient(const MixedRows<scalar_t>& s, int64_t i, RowStats<acc_t> stats, acc_t g,
                                   acc_t* mixed, acc_t* out) {
  mix_row(s, i, mixed);
  const acc_t m = stats.maximum[i], factor = g / stats.sum[i];
  for_each_vector(static_cast<const acc_t*>(mixed), s.classes,
                  [&](int64_t c, Vec<acc_t> v, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
                    const Vec<acc_t> part = exp2<acc_t>(shifted(v, m)) * factor;
                    const Vec<acc_t> before = load(out + c);
                    store(out + c, select<acc_t>(keep, before + part, before));
                  });
  out[s.label[i]] -= g;
}

template <typename scalar_t>
void gradient(const MixedRows<scalar_t>& s, PartnerOf partner_of, int64_t begin, int64_t end,
              acc_type<scalar_t>* scratch, RowStats<acc_type<scalar_t>> stats, const acc_type<scalar_t>* grad,
              scalar_t* dlogits) {
  using acc_t = acc_type<scalar_t>;
  acc_t *mixed = scratch, *sum = scratch + padded_classes(s);
  for (int64_t j = begin; j < end; ++j) {
    __builtin_memset(sum, 0, sizeof(acc_t) * size_t(padded_classes(s)));
    if (s.own_weight[j] != acc_t(0)) add_mixed_gradient(s, j, stats, s.own_weight[j] * grad[j], mixed, sum);
    for (int64_t k = partner_of.first[j]; k < partner_of.first[j + 1]; ++k) {
      const int64_t i = partner_of.source[k];
      add_mixed_gradient(s, i, stats, partner_weight(s.own_weight[i]) * grad[i], mixed, sum);
    }
    for_each_vector(static_cast<const acc_t*>(sum), s.classes,
                    [&](int64_t c, Vec<acc_t> v, IVec<acc_t>)
                        ICM_LAMBDA_INLINE { store_in_row(dlogits + j * s.classes, s.classes, c, v); });
  }
}

template <typename scalar_t>
constexpr AmMixupLossKernels<scalar_t> table() {
  return {scratch_size<scalar_t>, terms<scalar_t>, gradient<scalar_t>};
}

}  // namespace

extern const AmMixupLossKernels<float> am_mixup_loss_float = table<float>();
extern const AmMixupLossKernels<double> am_mixup_loss_double = table<double>();
extern const AmMixupLossKernels<bfloat16> am_mixup_loss_bfloat16 = table<bfloat16>();
extern const AmMixupLossKernels<float16> am_mixup_loss_float16 = table<float16>();

}  // namespace icm::ICM_ISA
