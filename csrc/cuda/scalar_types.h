// Types of logits and samples on the device: conversion to and from the type of sums, and the torch type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <type_traits>

#include "../stable_tensor.h"
#include "device.h"

namespace icm {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename acc_t>
inline constexpr torch::headeronly::ScalarType kAccType =
    std::is_same_v<acc_t, double> ? torch::headeronly::ScalarType::Double
                                  : torch::headeronly::ScalarType::Float;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(float16 x) { return __half2float(x); }
__device__ __forceinline__ void from_acc(float x, float* out) { *out = x; }
__device__ __forceinline__ void from_acc(double x, double* out) { *out = x; }
__device__ __forceinline__ void from_acc(float x, bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void from_acc(float x, float16* out) { *out = __float2half_rn(x); }

template <typename Body>
auto dispatch_floating(const char* op, const torch::stable::Tensor& tensor, const Body& body) {
  return dispatch_floating_types<bfloat16, float16>(op, tensor, body);
}

}  // namespace icm
