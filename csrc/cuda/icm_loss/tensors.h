// Logits at the boundary of the operators: checked, and as the kernels take them.
#pragma once

#include <optional>

#include "../../loss_tensors.h"
#include "../device_tensors.h"
#include "launch.h"

namespace icm {

using OptionalTensor = std::optional<Tensor>;

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

inline Logits logits_of(const char* op, const Tensor& logits, int64_t columns, int64_t diagonal,
                        const OptionalTensor& scale) {
  STD_TORCH_CHECK(logits.dim() == 2 && on_device(logits), op, ": expected logits of shape (B, C) on CUDA");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes < (int64_t(1) << 30), op, ": at most 2^30 classes");
  STD_TORCH_CHECK(columns < (int64_t(1) << 29), op, ": at most 2^29 columns");
  STD_TORCH_CHECK(most_slots(columns, classes) < (int64_t(1) << 27) - kExtraSlots, op,
                  ": at most 2^27 classes that columns use");  // slots times bytes stay below 2^31
  STD_TORCH_CHECK(diagonal >= 0 && rows <= columns && diagonal <= columns - rows, op,
                  ": expected the diagonal of ", rows, " rows to lie inside ", columns, " columns");
  STD_TORCH_CHECK(classes > 0 || columns == 0, op, ": expected at least one class");
  STD_TORCH_CHECK(!scale.has_value() || (scale->dim() == 0 && on_device(*scale)), op,
                  ": expected logit_scale of shape () on CUDA");
  return {data<const void>(logits),
          logit_type(op, logits),
          rows,
          classes,
          logits.stride(0),
          logits.stride(1),
          diagonal,
          scale.has_value() ? float_vector(op, "logit_scale", *scale, 1) : FloatVector{}};
}

inline Problem problem_of(const Logits& logits, const MixedLabels& labels) {
  return {logits.rows, labels.count, logits.classes, logits.type, labels.lam_stride == 0};
}

}  // namespace icm
