// What every CUDA operator needs of torch, through the stable ABI alone.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <mutex>
#include <optional>
#include <utility>

#include "device.h"

namespace icm {

// What is asked of each device once.
template <typename T>
class PerDevice {
 public:
  template <typename Ask>
  T get(int32_t device_index, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::optional<T>& known = known_[size_t(device_index < 0 ? 0 : device_index) % known_.size()];
    if (!known.has_value()) known = ask();
    return *known;
  }

 private:
  std::mutex mutex_;
  std::array<std::optional<T>, 64> known_{};
};

#if defined(ICM_SIMT_EMULATION)

// The same operators work on tensors in the CPU's memory (tests/emulation).
#define ICM_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m)

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline cudaStream_t current_stream(int32_t) { return nullptr; }
// Not kept: tests change them.
inline DeviceLimits limits_of(int32_t device_index) { return query_device_limits(device_index); }

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

#else

#define ICM_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(icm_fast, CUDA, m)

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

inline DeviceLimits limits_of(int32_t device_index) {
  static PerDevice<DeviceLimits> known;
  return known.get(device_index, [&] {
    const DeviceLimits limits = query_device_limits(device_index);
    STD_TORCH_CHECK(limits.multiprocessors > 0, "icm_fast: CUDA device ", device_index, " does not answer");
    return limits;
  });
}

using torch::stable::accelerator::DeviceGuard;

#endif

// The device of a tensor, made current for the lifetime of this object, its stream and its limits.
class DeviceScope {
 public:
  DeviceScope(const char* op, const torch::stable::Tensor& tensor)
      : op_(op), index_(tensor.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

  cudaStream_t stream() const { return stream_; }
  int32_t index() const { return index_; }
  DeviceLimits limits() const { return limits_of(index_); }

  // torch's own check needs symbols that a CPU-only torch lacks.
  template <typename... Parameters, typename... Arguments>
  void launch(const Launch& how, void (*kernel)(Parameters...), Arguments&&... arguments) const {
    const cudaError_t error = launch_kernel(how, stream_, kernel, std::forward<Arguments>(arguments)...);
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }

 private:
  const char* op_;
  int32_t index_;
  DeviceGuard guard_;
  cudaStream_t stream_;
};

// Blocks of the largest cluster of a kernel that can be had, 0 if none: the device has them, this build has code for
// them, and the part of the device that is ours is large enough. `known`: one for each kernel.
template <typename... Parameters>
int largest_cluster(PerDevice<int>& known, const DeviceScope& device, int threads, size_t shared_bytes,
                    void (*kernel)(Parameters...)) {
  if (!device.limits().has_clusters) return 0;
  return known.get(device.index(), [&] {
    for (const int blocks : {kLargestCluster, kPortableCluster})
      if (resident_clusters({blocks, threads, shared_bytes, blocks}, kernel) > 0) return blocks;
    return 0;
  });
}

}  // namespace icm
