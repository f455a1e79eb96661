// Allocation and checks at the boundary of the losses on CUDA.
#pragma once

#include <optional>

#include "../loss_tensors.h"
#include "device_tensors.h"
#include "icm_loss_problem.h"

namespace icm {

// A contiguous tensor on the device of `like`, without the heap: at small batches the host's time counts.
inline Tensor new_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[4];
  int64_t next = 1;
  for (size_t d = sizes.size(); d-- > 0; next *= sizes.begin()[d] < 1 ? 1 : sizes.begin()[d])
    strides[d] = next;
  return new_strided(int64_t(sizes.size()), sizes.begin(), strides, type, device_type(),
                     like.get_device_index());
}

inline LogitType logit_type(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return LogitType::kFloat;
    case ScalarType::Double:
      return LogitType::kDouble;
    case ScalarType::BFloat16:
      return LogitType::kBFloat16;
    case ScalarType::Half:
      return LogitType::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected a float32, float64, bfloat16 or float16 tensor");
  }
}

}  // namespace icm
