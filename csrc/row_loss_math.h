// What the losses with one term per row make of a row's labels, written once for host and device. A value out of
// range makes the whole target invalid and is never used as an index.
//
//   cross-entropy   loss_i = sum_c u_ic (lse_i - S_ic)          u_ic = w_c q_ic: class weight times smoothed target
//                   dS_ic  = g_i (W_i p_ic - u_ic)              W_i = sum_c u_ic
//   AM-Mixup        M_i = r S_i + (1 - r) S_partner(i)          loss_i = lse(M_i) - M_i,label(i)
//                   dS_j = r dM_j + sum over i with partner(i) == j of (1 - r) dM_i      dM_i = g_i (p_i - onehot)
#pragma once

#include "mixed_labels.h"
#include "softmax_math.h"

namespace icm {

// A row is to be class a with weight_a and class b with weight_b, class weights included; a == b is a pure class.
template <typename acc_t>
struct SoftTarget {
  int64_t a, b;
  acc_t weight_a, weight_b;
  bool valid;
};

// `kept`: what label smoothing leaves; `class_weight` (C,) or null.
template <typename acc_t>
ICM_HOST_DEVICE SoftTarget<acc_t> soft_target(const MixedLabels& labels, int64_t i, int64_t classes,
                                              const acc_t* class_weight, acc_t kept) {
  const MixedClass<acc_t> mixed = mixed_class<acc_t>(labels, i, classes);
  if (!mixed.valid) return {0, 0, 0, 0, false};
  return {mixed.a, mixed.b, kept * mixed.w_a * (class_weight == nullptr ? acc_t(1) : class_weight[mixed.a]),
          kept * mixed.w_b * (class_weight == nullptr ? acc_t(1) : class_weight[mixed.b]), true};
}

// Partners and labels of AM-Mixup as they came: any stride.
struct PartnerLabels {
  const int64_t *index, *labels;
  int64_t index_stride, labels_stride;
};

// A row mixes with row `partner` and is to be class `label`. own_weight is the rate, or exactly 1 where the partner
// takes no part; a weight of exactly 0 leaves the row itself out.
template <typename acc_t>
struct MixedRow {
  int64_t partner, label;
  acc_t own_weight;
  bool valid;
};

template <typename acc_t>
ICM_HOST_DEVICE MixedRow<acc_t> mixed_row(const PartnerLabels& given, int64_t i, int64_t rows,
                                          int64_t classes, acc_t rate) {
  const int64_t partner = given.index[i * given.index_stride], own = given.labels[i * given.labels_stride];
  if (!lam_is_valid(rate) || partner < 0 || partner >= rows || own < 0 || own >= classes)
    return {0, 0, 0, false};
  const int64_t label = rate >= acc_t(0.5) ? own : given.labels[partner * given.labels_stride];
  if (label < 0 || label >= classes) return {0, 0, 0, false};
  return {partner, label, partner == i ? acc_t(1) : rate, true};
}

// ln of a row's sum of exponentials is maximum + ln(sum). Kept apart: their sum would lose the bits that a common
// offset of the logits takes. No maximum is NaN, a row of NaN included, unless the target is invalid.
template <typename acc_t>
struct RowStats {
  acc_t *maximum, *sum;  // (rows,)
};

}  // namespace icm
