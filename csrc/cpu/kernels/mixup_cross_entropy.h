// What the mixed cross-entropy kernels read and write. Plain data, no code: this header is shared by
// the operator (compiled once) and the kernels (compiled once per instruction set).
#pragma once

#include <cstdint>

#include "../../row_loss_math.h"
#include "scalar_types.h"

namespace icm {

// Row i is to be class_a[i] with weight_a[i] and class_b[i] with weight_b[i], class weights included;
// class_a == class_b is a pure class. Label smoothing adds smoothing[c] to every class.
template <typename scalar_t>
struct SoftTargets {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* logits;
  int64_t rows, classes;
  int64_t row_stride, class_stride;
  const int64_t* class_a;  // (rows,)
  const int64_t* class_b;  // (rows,)
  const acc_t* weight_a;   // (rows,)
  const acc_t* weight_b;   // (rows,)
  const acc_t* smoothing;  // (classes,) padded to a vector, or null
  acc_t total_smoothing;
};

template <typename scalar_t>
struct MixupCrossEntropyKernels {
  using acc_t = acc_type<scalar_t>;
  // 1. Statistics and loss terms, in nats, of rows [begin, end). scratch: one row, for strided classes.
  void (*terms)(const SoftTargets<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch,
                RowStats<acc_t> stats, acc_t* term);
  // 2. Gradient of rows [begin, end); `grad` (rows,) is that of the terms, dlogits is contiguous.
  void (*gradient)(const SoftTargets<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch,
                   RowStats<acc_t> stats, const acc_t* grad, scalar_t* dlogits);
};

}  // namespace icm
