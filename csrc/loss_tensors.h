// What the operators of losses take besides logits, checked alike on either device. Python validates first, with
// better messages; what is checked here is what memory safety needs when an operator is called directly.
//
// Device has
//   bool owns(const Tensor&)
#pragma once

#include "float_vector.h"
#include "mixed_labels.h"

namespace icm {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline Reduction reduction_from(const char* op, int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= 2, op, ": expected reduction 0 (none), 1 (mean) or 2 (sum)");
  return Reduction(value);
}

// Sums are kept in double for double, else in float.
inline ScalarType sum_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename Device>
MixedLabels mixed_labels(const char* op, const Tensor& y_a, const Tensor& y_b, const Tensor& lam) {
  STD_TORCH_CHECK(y_a.dim() == 1 && y_b.dim() == 1 && y_a.size(0) == y_b.size(0), op,
                  ": expected y_a and y_b of one shape (B,)");
  STD_TORCH_CHECK(y_a.scalar_type() == ScalarType::Long && y_b.scalar_type() == ScalarType::Long, op,
                  ": expected int64 labels");
  check_device<Device>(op, {&y_a, &y_b, &lam});
  const int64_t count = y_a.size(0);
  const FloatVector weights = float_vector(op, "lam", lam, count);
  return {count,         data<const int64_t>(y_a), data<const int64_t>(y_b), y_a.stride(0),
          y_b.stride(0), weights.as_float,         weights.as_double,        weights.stride};
}

}  // namespace icm
