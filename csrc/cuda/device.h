// What kernels use of the device, in one place: thread positions, shared memory, barriers, shuffles, groups of blocks
// and the launch itself. Here each is one instruction or one runtime call; tests/emulation has a second
// implementation of the same names, under which the same kernels run on a CPU.
//
// Rules that make both work: blocks are one-dimensional and a multiple of 32 threads; a kernel's shared memory is
// dynamic and comes from shared_memory(); every thread of a warp reaches each shuffle and ballot, every thread of a
// group each of its barriers; nothing launches with <<<>>>.
#pragma once

namespace icm {
// Blocks of a cluster that every device with clusters can have, and that some have when a kernel asks for it.
inline constexpr int kPortableCluster = 8, kLargestCluster = 16;
}  // namespace icm

#if defined(ICM_SIMT_EMULATION)
#include "simt.h"
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace icm {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x) / kWarp; }
__device__ __forceinline__ int warp_count() { return int(blockDim.x) / kWarp; }

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ __align__(16) unsigned char icm_shared[];
  return icm_shared;
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
// Barrier of the block that also tells every thread whether the condition held in any.
__device__ __forceinline__ bool any_in_block(bool condition) { return __syncthreads_or(int(condition)) != 0; }

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <typename T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
__device__ __forceinline__ bool any_in_warp(bool condition) {
  return __any_sync(kAllLanes, int(condition)) != 0;
}
__device__ __forceinline__ unsigned ballot(bool condition) {
  return __ballot_sync(kAllLanes, int(condition));
}

// The lanes of the warp whose value is the same as this lane's.
__device__ __forceinline__ unsigned match_any(int value) { return __match_any_sync(kAllLanes, value); }

__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused_multiply_add(double a, double b, double c) { return fma(a, b, c); }

__device__ __forceinline__ uint32_t to_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint64_t to_bits(double x) { return uint64_t(__double_as_longlong(x)); }
template <typename T>
__device__ __forceinline__ T from_bits(uint32_t bits) {
  return __uint_as_float(bits);
}
template <typename T>
__device__ __forceinline__ T from_bits(uint64_t bits) {
  return __longlong_as_double(int64_t(bits));
}

// 2^x; a result below the smallest normal number is 0. Error 2^-22.5 relative for float (one MUFU instruction).
__device__ __forceinline__ float exp2_flushed(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ double exp2_flushed(double x) { return exp2(x); }

// Blocks that work together and can wait for each other. rank() and size() count blocks; sync() is a barrier of all
// their threads and makes what they wrote, shared or global, visible to each other; at(pointer, rank) is the same
// place in another block's shared memory.
struct BlockGroup {
  static constexpr bool has_shared = true;
  __device__ __forceinline__ static int rank() { return 0; }
  __device__ __forceinline__ static int size() { return 1; }
  __device__ __forceinline__ static void sync() { __syncthreads(); }
  template <typename T>
  __device__ __forceinline__ static T* at(T* pointer, int) {
    return pointer;
  }
};

// A thread-block cluster: sm_90 and newer; on older devices the kernel traps, and the host never launches it there.
struct ClusterGroup {
  static constexpr bool has_shared = true;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ __forceinline__ static int rank() {
    return int(cooperative_groups::this_cluster().block_rank());
  }
  __device__ __forceinline__ static int size() {
    return int(cooperative_groups::this_cluster().num_blocks());
  }
  __device__ __forceinline__ static void sync() { cooperative_groups::this_cluster().sync(); }
  template <typename T>
  __device__ __forceinline__ static T* at(T* pointer, int rank) {
    return cooperative_groups::this_cluster().map_shared_rank(pointer, rank);
  }
#else
  __device__ __forceinline__ static int rank() { return 0; }
  __device__ __forceinline__ static int size() { return 1; }
  __device__ __forceinline__ static void sync() { __trap(); }
  template <typename T>
  __device__ __forceinline__ static T* at(T* pointer, int) {
    return pointer;
  }
#endif
};

// Every block of a cooperative launch. No access to each other's shared memory.
struct GridGroup {
  static constexpr bool has_shared = false;
  __device__ __forceinline__ static int rank() { return int(blockIdx.x); }
  __device__ __forceinline__ static int size() { return int(gridDim.x); }
  __device__ __forceinline__ static void sync() { cooperative_groups::this_grid().sync(); }
};

struct Launch {
  int blocks;
  int threads;
  size_t shared_bytes = 0;
  int cluster = 1;           // blocks in a cluster
  bool cooperative = false;  // for GridGroup
};

// Lets a kernel have as much dynamic shared memory as a block can get. To the most there is, not to what one launch
// needs: two threads of the host may launch the same kernel with different sizes.
inline cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// What a kernel must be allowed before such a launch.
inline cudaError_t allow_launch(const void* kernel, const Launch& how) {
  const cudaError_t error = allow_shared_memory(kernel, how.shared_bytes);
  return error != cudaSuccess || how.cluster <= kPortableCluster
             ? error
             : cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// The attributes of a launch, and a configuration that points to them.
struct LaunchConfiguration {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  LaunchConfiguration(const Launch& how, cudaStream_t stream) {
    config.gridDim = dim3(unsigned(how.blocks));
    config.blockDim = dim3(unsigned(how.threads));
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (how.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = unsigned(how.cluster);
      attributes[config.numAttrs].val.clusterDim.y = 1;
      attributes[config.numAttrs].val.clusterDim.z = 1;
      ++config.numAttrs;
    }
    if (how.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs].val.cooperative = 1;
      ++config.numAttrs;
    }
  }
  LaunchConfiguration(const LaunchConfiguration&) = delete;
};

// Launches, and leaves no error behind for the next launch to find.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const Launch& how, cudaStream_t stream, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  LaunchConfiguration launch(how, stream);
  cudaError_t error = allow_launch(reinterpret_cast<const void*>(kernel), how);
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&launch.config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// Clusters of such a launch that the device can hold at once; 0 where it has none, and where the code that it would run
// was compiled for a device without them.
template <typename... Parameters>
int resident_clusters(const Launch& how, void (*kernel)(Parameters...)) {
  LaunchConfiguration launch(how, nullptr);
  cudaFuncAttributes attributes{};
  int clusters = 0;
  const bool answered =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess &&
      attributes.ptxVersion >= 90 &&
      allow_launch(reinterpret_cast<const void*>(kernel), how) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) == cudaSuccess;
  cudaGetLastError();
  return answered ? clusters : 0;
}

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that one block can have
  bool has_clusters;
};

inline DeviceLimits query_device_limits(int device) {
  int multiprocessors = 0, shared_bytes = 0, major = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return {multiprocessors, shared_bytes, major >= 9};
}

}  // namespace icm

#endif
