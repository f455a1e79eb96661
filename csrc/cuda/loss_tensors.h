// Allocation and checks at the boundary of the losses on CUDA.
#pragma once

#include <optional>

#include "../loss_tensors.h"
#include "device_tensors.h"
#include "icm_loss/problem.h"

namespace icm {

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
