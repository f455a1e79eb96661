// The names of csrc/cuda/device.h on a CPU: every CUDA thread is a fiber, which goes on until it reaches a barrier, a
// shuffle or an atomic operation. What is modelled and what is not: README.md.
#pragma once

#include <tuple>
#include <type_traits>

#include "intrinsics.h"
#include "scheduler.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ _Pragma("GCC error \"shared memory is dynamic here: take it from icm::shared_memory()\"")

// One-dimensional. What the running thread sees: written at every switch.
inline constexpr const icm::simt::Position& threadIdx = icm::simt::thread_position;
inline constexpr const icm::simt::Position& blockIdx = icm::simt::block_position;
inline constexpr const icm::simt::Position& blockDim = icm::simt::block_size;
inline constexpr const icm::simt::Position& gridDim = icm::simt::grid_size;

// Streams and errors of the runtime.
using cudaStream_t = void*;
using cudaError_t = icm::simt::Error;
inline constexpr cudaError_t cudaSuccess = icm::simt::Error::kNone;
inline const char* cudaGetErrorString(cudaError_t error) { return icm::simt::error_string(error); }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

namespace icm {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

using simt::Where;

inline int lane_index() { return int(threadIdx.x) % kWarp; }
inline int warp_index() { return int(threadIdx.x) / kWarp; }
inline int warp_count() { return int(blockDim.x) / kWarp; }
inline void* shared_memory() { return simt::shared_memory(); }

inline void sync_block(Where where = Where::current()) { simt::sync_block(false, where); }
inline void sync_warp(Where where = Where::current()) { simt::exchange(0, where); }
inline bool any_in_block(bool condition, Where where = Where::current()) {
  return simt::sync_block(condition, where);
}

template <typename T>
T shuffle(T value, int lane, Where where = Where::current()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::exchange(bits, where)[unsigned(lane) % kWarp];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return shuffle(value, lane_index() ^ mask, where);
}
inline unsigned ballot(bool condition, Where where = Where::current()) {
  const uint64_t* conditions = simt::exchange(condition, where);
  unsigned result = 0;
  for (int lane = 0; lane < kWarp; ++lane) result |= unsigned(conditions[lane]) << lane;
  return result;
}
inline bool any_in_warp(bool condition, Where where = Where::current()) {
  return ballot(condition, where) != 0;
}
inline unsigned match_any(int value, Where where = Where::current()) {
  const uint64_t* values = simt::exchange(uint32_t(value), where);
  unsigned result = 0;
  for (int lane = 0; lane < kWarp; ++lane) result |= unsigned(values[lane] == uint32_t(value)) << lane;
  return result;
}

inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused_multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

inline uint32_t to_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline uint64_t to_bits(double x) { return std::bit_cast<uint64_t>(x); }
template <typename T>
T from_bits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
template <typename T>
T from_bits(uint64_t bits) {
  return std::bit_cast<double>(bits);
}

// Up to one unit in the last place is added to the library's result, so that nothing passes here only because this
// exp2 is better than the device's. Powers of two stay exact.
inline float exp2_flushed(float x) {
  const float result = std::exp2(x);
  if (result < 0x1p-126f) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(result),
                 hash = std::bit_cast<uint32_t>(x) * 0x9e3779b9u >> 30;
  if ((bits & 0x7fffffu) == 0 || bits > 0x7f800000u) return result;
  return std::bit_cast<float>(bits + (hash == 1) - (hash == 2));
}
inline double exp2_flushed(double x) { return std::exp2(x); }

struct BlockGroup {
  static constexpr bool has_shared = true;
  static int rank() { return 0; }
  static int size() { return 1; }
  static void sync(Where where = Where::current()) { simt::sync_block(false, where); }
  template <typename T>
  static T* at(T* pointer, int) {
    return pointer;
  }
};

struct ClusterGroup {
  static constexpr bool has_shared = true;
  static int rank() { return simt::cluster_rank(); }
  static int size() { return simt::cluster_size(); }
  static void sync(Where where = Where::current()) { simt::sync_cluster(where); }
  template <typename T>
  static T* at(T* pointer, int rank, Where where = Where::current()) {
    return static_cast<T*>(simt::shared_of((void*)pointer, rank, where));
  }
};

struct GridGroup {
  static constexpr bool has_shared = false;
  static int rank() { return int(blockIdx.x); }
  static int size() { return int(gridDim.x); }
  static void sync(Where where = Where::current()) { simt::sync_grid(where); }
};

using simt::DeviceLimits;
using simt::Launch;

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const Launch& how, cudaStream_t, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...) && (sizeof(Parameters) + ... + 0) <= 4096);
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  // Every thread has parameters of its own, as on the device.
  const Call call{kernel, {static_cast<Parameters>(arguments)...}};
  const auto run = [](const void* call) {
    std::apply(static_cast<const Call*>(call)->kernel, static_cast<const Call*>(call)->parameters);
  };
  return simt::launch(how, reinterpret_cast<const void*>(kernel), run, &call);
}

// Blocks that one multiprocessor can hold.
template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), int threads, size_t shared_bytes) {
  return simt::resident_blocks(threads, shared_bytes);
}
template <typename... Parameters>
int resident_clusters(const Launch& how, void (*)(Parameters...)) {
  const DeviceLimits limits = simt::device_limits();
  return limits.has_clusters &&
         how.cluster <= (limits.multiprocessors < kLargestCluster ? kPortableCluster : kLargestCluster);
}

inline DeviceLimits query_device_limits(int) { return simt::device_limits(); }

}  // namespace icm
