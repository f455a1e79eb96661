// What every CUDA operator needs of torch, through the stable ABI alone.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <mutex>
#include <utility>

#include "device.h"

// Under emulation (tests/emulation) the same operators work on tensors in the CPU's memory.
#if defined(ICM_SIMT_EMULATION)
#define ICM_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m)
#else
#define ICM_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(icm_fast, CUDA, m)
#endif

namespace icm {

#if defined(ICM_SIMT_EMULATION)

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }

#else

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }

// The stream that torch works on. Looked up at the first launch: a reference to this symbol, which a CPU-only torch
// lacks, would keep the whole library from loading there.
inline cudaStream_t current_stream(int32_t device_index) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Getter>(symbol);
  }();
  STD_TORCH_CHECK(getter != nullptr, "icm_fast: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

#endif

// The device of a tensor, made current for the lifetime of this object, its stream and its limits.
class DeviceScope {
 public:
  DeviceScope(const char* op, const torch::stable::Tensor& tensor)
      : op_(op),
        index_(tensor.get_device_index())
#if defined(ICM_SIMT_EMULATION)
        ,
        stream_(nullptr){}
#else
        ,
        guard_(index_),
        stream_(current_stream(index_)) {
  }
#endif

        cudaStream_t stream() const {
    return stream_;
  }
  int32_t index() const { return index_; }

#if defined(ICM_SIMT_EMULATION)
  DeviceLimits limits() const { return query_device_limits(index_); }  // tests change the device
#else
  // Queried once for each device.
  DeviceLimits limits() const {
    static std::mutex mutex;
    static std::array<std::pair<bool, DeviceLimits>, 64> known{};
    const size_t slot = size_t(index_ < 0 ? 0 : index_) % known.size();
    const std::lock_guard<std::mutex> lock(mutex);
    if (!known[slot].first) known[slot] = {true, query_device_limits(index_)};
    return known[slot].second;
  }
#endif

  // torch's own check needs symbols that a CPU-only torch lacks.
  template <typename... Parameters, typename... Arguments>
  void launch(const Launch& how, void (*kernel)(Parameters...), Arguments&&... arguments) const {
    const cudaError_t error = launch_kernel(how, stream_, kernel, std::forward<Arguments>(arguments)...);
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }

 private:
  const char* op_;
  int32_t index_;
#if !defined(ICM_SIMT_EMULATION)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_;
};

}  // namespace icm
