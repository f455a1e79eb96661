// Checks and allocation at the operator boundary. Python validates first, with better messages; what is
// checked here is what memory safety needs when an operator is called directly.
#pragma once

#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>

#include "../loss_tensors.h"
#include "columns.h"
#include "kernels/scalar_types.h"

namespace icm {

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
template <typename Sizes>
Tensor new_contiguous(const Sizes& sizes, ScalarType type) {
  int64_t strides[8];
  int64_t next = 1;
  const int64_t* const first = std::data(sizes);
  for (size_t d = sizes.size(); d-- > 0; next *= std::max<int64_t>(first[d], 1)) strides[d] = next;
  return new_strided(int64_t(sizes.size()), first, strides, type, aoti_torch_device_type_cpu(), 0);
}
inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) {
  return new_contiguous(sizes, type);
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

struct OnCpu {
  static bool owns(const Tensor& tensor) { return tensor.is_cpu(); }
};

inline MixedLabels mixed_labels(const char* op, const Tensor& y_a, const Tensor& y_b, const Tensor& lam) {
  return mixed_labels<OnCpu>(op, y_a, y_b, lam);
}

template <typename acc_t>
struct Broadcast : FloatVector {
  acc_t operator[](int64_t i) const { return at<acc_t>(i); }
};

template <typename acc_t>
Broadcast<acc_t> broadcast_vector(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  check_device<OnCpu>(op, {&tensor});
  return {float_vector(op, name, tensor, count)};
}

}  // namespace icm
