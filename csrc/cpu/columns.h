// Prepares the mixed classes of a batch, one per column.
//
// A column whose labels are equal, or one of whose weights is exactly 0, is the pure class with weight
// exactly 1: lam*S + (1-lam)*S would break exact ties, and 0 * -inf is NaN. A label or a lam out of range
// makes the target invalid; it is never used as an index.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../icm_math.h"
#include "kernels/icm_loss.h"
#include "workspace.h"

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

  double lam(int64_t j) const {
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
inline MixedClass<acc_t> mixed_class(const MixedLabels& labels, int64_t j, int64_t classes) {
  const int64_t a = labels.y_a[j * labels.stride_a], b = labels.y_b[j * labels.stride_b];
  const double given = labels.lam(j);  // judged before it is rounded
  const acc_t lam = acc_t(given), rest = partner_weight(lam);
  if (a < 0 || a >= classes || b < 0 || b >= classes || !lam_is_valid(given)) return {0, 0, 0, 0, false};
  if (a == b || rest == acc_t(0)) return {a, a, acc_t(1), acc_t(0), true};
  if (lam == acc_t(0)) return {b, b, acc_t(1), acc_t(0), true};
  return {a, b, lam, rest, true};
}

template <typename acc_t>
struct ColumnBuffers {
  int32_t *slot_a, *slot_b, *slot_of;
  acc_t *w_a, *w_b;
  int64_t* present;

  void reserve(Workspace& workspace, int64_t count, int64_t classes) {
    workspace.reserve(count, &slot_a);
    workspace.reserve(count, &slot_b);
    workspace.reserve(count, &w_a);
    workspace.reserve(count, &w_b);
    workspace.reserve(classes, &slot_of);
    workspace.reserve(std::min(2 * count, classes), &present);
  }
};

// Returns false when the target is invalid.
template <typename acc_t>
bool prepare_columns(const MixedLabels& labels, int64_t classes, const ColumnBuffers<acc_t>& buffers,
                     Columns<acc_t>* columns) {
  std::fill(buffers.slot_of, buffers.slot_of + classes, -1);
  for (int64_t j = 0; j < labels.count; ++j) {
    const MixedClass<acc_t> mixed = mixed_class<acc_t>(labels, j, classes);
    if (!mixed.valid) return false;
    buffers.slot_a[j] = int32_t(mixed.a);
    buffers.slot_b[j] = int32_t(mixed.b);
    buffers.w_a[j] = mixed.w_a;
    buffers.w_b[j] = mixed.w_b;
    buffers.slot_of[mixed.a] = buffers.slot_of[mixed.b] = 0;
  }
  int32_t used = 0;
  for (int64_t c = 0; c < classes; ++c)
    if (buffers.slot_of[c] == 0) {
      buffers.present[used] = c;
      buffers.slot_of[c] = used++;
    }
  for (int64_t j = 0; j < labels.count; ++j) {
    buffers.slot_a[j] = buffers.slot_of[buffers.slot_a[j]];
    buffers.slot_b[j] = buffers.w_b[j] == acc_t(0) ? used : buffers.slot_of[buffers.slot_b[j]];
  }
  *columns = {labels.count, buffers.slot_a, buffers.slot_b,  buffers.w_a,
              buffers.w_b,  used,           buffers.present, used == classes ? nullptr : buffers.slot_of};
  return true;
}

}  // namespace icm
