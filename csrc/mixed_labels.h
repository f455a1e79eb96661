// The target of a batch, and the mixed class that it makes of each column, for host and device.
//
// A column whose labels are equal, or one of whose weights is exactly 0, is the pure class with weight
// exactly 1: lam*S + (1-lam)*S would break exact ties, and 0 * -inf is NaN. A label or a lam out of range
// makes the target invalid; it is never used as an index.
#pragma once

#include <cstdint>

#include "icm_math.h"

namespace icm {

// Labels and lam as they came: any stride (0: one lam for the batch), float or double lam.
struct MixedLabels {
  int64_t count;
  const int64_t* y_a;
  const int64_t* y_b;
  int64_t stride_a, stride_b;
  const float* lam_float;  // one of the two is null
  const double* lam_double;
  int64_t lam_stride;

  ICM_HOST_DEVICE double lam(int64_t j) const {
    return lam_float != nullptr ? double(lam_float[j * lam_stride]) : lam_double[j * lam_stride];
  }
};

template <typename acc_t>
struct MixedClass {
  int64_t a, b;  // equal for a pure class
  acc_t w_a, w_b;
  bool valid;
};

template <typename acc_t>
ICM_HOST_DEVICE MixedClass<acc_t> mixed_class(const MixedLabels& labels, int64_t j, int64_t classes) {
  const int64_t a = labels.y_a[j * labels.stride_a], b = labels.y_b[j * labels.stride_b];
  const double given = labels.lam(j);  // judged before it is rounded
  const acc_t lam = acc_t(given), rest = partner_weight(lam);
  if (a < 0 || a >= classes || b < 0 || b >= classes || !lam_is_valid(given)) return {0, 0, 0, 0, false};
  if (a == b || rest == acc_t(0)) return {a, a, acc_t(1), acc_t(0), true};
  if (lam == acc_t(0)) return {b, b, acc_t(1), acc_t(0), true};
  return {a, b, lam, rest, true};
}

}  // namespace icm
