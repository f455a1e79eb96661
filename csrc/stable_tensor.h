// What operators of every device need of tensors: dispatch on the type, and allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#if defined(ICM_SIMT_EMULATION)
#include <cstring>
#endif
#include <initializer_list>

namespace icm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor may have elements and no memory: FSDP frees the storage of what it gathers again.
template <typename T>
T* data(const Tensor& tensor) {
  void* const memory = tensor.data_ptr();
  STD_TORCH_CHECK(memory != nullptr || tensor.numel() == 0, "expected a tensor whose storage is allocated");
  return static_cast<T*>(memory);
}

template <typename Device>
void check_device(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors)
    STD_TORCH_CHECK(Device::owns(*tensor), op, ": expected every tensor on the device of this overload");
}

// Calls body(T{}) for the floating-point type of a tensor; the 16-bit types are the device's own.
template <typename bfloat16_t, typename float16_t, typename Body>
auto dispatch_floating_types(const char* op, const Tensor& tensor, const Body& body) {
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
inline Tensor new_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, ScalarType type,
                          int32_t device_type, int32_t device_index) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      device_type, device_index, &handle));
#if defined(ICM_SIMT_EMULATION)
  // NaN of every type: an element that no kernel writes shows.
  void* memory;
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &memory));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(handle, &bytes));
  if (bytes > 0) std::memset(memory, 0xff, size_t(bytes));
#endif
  return Tensor(handle);
}

}  // namespace icm
