// Numbers of a batch, one or one per row, read where they are.
#pragma once

#include "icm_math.h"
#include "stable_tensor.h"

namespace icm {

// A float or double vector as it came: any stride; () counts as stride 0.
struct FloatVector {
  const float* as_float;  // one of the two is null
  const double* as_double;
  int64_t stride;

  template <typename T>
  ICM_HOST_DEVICE T at(int64_t i) const {
    return as_float != nullptr ? T(as_float[i * stride]) : T(as_double[i * stride]);
  }
};

inline FloatVector float_vector(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  STD_TORCH_CHECK(tensor.dim() == 0 || (tensor.dim() == 1 && tensor.size(0) == count), op, ": expected ",
                  name, " of shape () or (", count, ",)");
  const int64_t stride = tensor.dim() == 0 ? 0 : tensor.stride(0);
  if (tensor.scalar_type() == ScalarType::Float) return {data<const float>(tensor), nullptr, stride};
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, op, ": expected ", name,
                  " in float32 or float64");
  return {nullptr, data<const double>(tensor), stride};
}

}  // namespace icm
