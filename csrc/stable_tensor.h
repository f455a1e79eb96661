// What operators of every device need of tensors: dispatch on the type, and allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace icm {

// Calls body(T{}) for the floating-point type of a tensor; the 16-bit types are the device's own.
template <typename bfloat16_t, typename float16_t, typename Body>
auto dispatch_floating_types(const char* op, const torch::stable::Tensor& tensor, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::BFloat16:
      return body(bfloat16_t{});
    case ScalarType::Half:
      return body(float16_t{});
    default:
      STD_TORCH_CHECK(false, op, ": expected a float32, float64, bfloat16 or float16 tensor");
  }
}

// Through the C shim: torch::stable::empty goes through the dispatcher's boxed path, which at small batches is a
// fifth of the whole call.
inline torch::stable::Tensor new_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                                         torch::headeronly::ScalarType type, int32_t device_type,
                                         int32_t device_index) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      device_type, device_index, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace icm
