// Prepares the mixed classes of a batch (../mixed_labels.h), one per column.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../mixed_labels.h"
#include "kernels/icm_loss.h"
#include "workspace.h"

namespace icm {

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
