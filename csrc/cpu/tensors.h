// Checks and allocation at the operator boundary. Python validates first, with better messages; what is
// checked here is what memory safety needs when an operator is called directly.
#pragma once

#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>

#include "../stable_tensor.h"
#include "columns.h"
#include "kernels/scalar_types.h"

namespace icm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename scalar_t>
inline constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
inline constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kScalarType<double> = ScalarType::Double;
template <>
inline constexpr ScalarType kScalarType<bfloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kScalarType<float16> = ScalarType::Half;

template <typename Body>
auto dispatch_floating(const char* op, const Tensor& tensor, const Body& body) {
  return dispatch_floating_types<bfloat16, float16>(op, tensor, body);
}

// A contiguous tensor on the CPU.
inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[8];
  int64_t next = 1;
  for (size_t d = sizes.size(); d-- > 0; next *= std::max<int64_t>(sizes.begin()[d], 1)) strides[d] = next;
  return new_strided(int64_t(sizes.size()), sizes.begin(), strides, type, aoti_torch_device_type_cpu(), 0);
}

// A tensor may have elements and no memory: FSDP frees the storage of what it gathers again.
template <typename T>
T* data(const Tensor& tensor) {
  void* const memory = tensor.data_ptr();
  STD_TORCH_CHECK(memory != nullptr || tensor.numel() == 0, "expected a tensor whose storage is allocated");
  return static_cast<T*>(memory);
}

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <typename T>
void fill(T* out, int64_t count, T value) {
  std::fill(out, out + count, value);
}
inline void fill_nan(float* out, int64_t count) { fill(out, count, float(kNaN)); }
inline void fill_nan(double* out, int64_t count) { fill(out, count, kNaN); }
inline void fill_nan(bfloat16* out, int64_t count) { fill(out, count, bfloat16{0x7fc0}); }
inline void fill_nan(float16* out, int64_t count) { fill(out, count, float16{0x7e00}); }

inline MixedLabels mixed_labels(const char* op, const Tensor& y_a, const Tensor& y_b, const Tensor& lam) {
  STD_TORCH_CHECK(y_a.dim() == 1 && y_b.dim() == 1 && y_a.size(0) == y_b.size(0), op,
                  ": expected y_a and y_b of one shape (B,)");
  STD_TORCH_CHECK(y_a.scalar_type() == ScalarType::Long && y_b.scalar_type() == ScalarType::Long, op,
                  ": expected int64 labels");
  const int64_t count = y_a.size(0);
  STD_TORCH_CHECK(lam.dim() == 0 || (lam.dim() == 1 && lam.size(0) == count), op,
                  ": expected lam of shape () or (B,)");
  const ScalarType type = lam.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
                  ": expected float32 or float64 lam");
  STD_TORCH_CHECK(y_a.is_cpu() && y_b.is_cpu() && lam.is_cpu(), op, ": expected tensors on the CPU");
  return {count,
          data<const int64_t>(y_a),
          data<const int64_t>(y_b),
          y_a.stride(0),
          y_b.stride(0),
          type == ScalarType::Float ? data<const float>(lam) : nullptr,
          type == ScalarType::Double ? data<const double>(lam) : nullptr,
          lam.dim() == 0 ? 0 : lam.stride(0)};
}

// A scalar or a vector of float32 or float64, read as acc_t: () counts as stride 0.
template <typename acc_t>
struct Broadcast {
  const void* values;
  ScalarType type;
  int64_t stride;

  acc_t operator[](int64_t i) const {
    switch (type) {
      case ScalarType::Float:
        return acc_t(static_cast<const float*>(values)[i * stride]);
      default:
        return acc_t(static_cast<const double*>(values)[i * stride]);
    }
  }
};

template <typename acc_t>
Broadcast<acc_t> broadcast_vector(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": expected ", name,
                  " in float32 or float64");
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": expected ", name, " on the CPU");
  STD_TORCH_CHECK(tensor.dim() == 0 || (tensor.dim() == 1 && tensor.size(0) == count), op, ": expected ",
                  name, " of shape () or (", count, ",)");
  return {data<const void>(tensor), type, tensor.dim() == 0 ? 0 : tensor.stride(0)};
}

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline Reduction reduction_from(const char* op, int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= 2, op, ": expected reduction 0 (none), 1 (mean) or 2 (sum)");
  return Reduction(value);
}

}  // namespace icm
