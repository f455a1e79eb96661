// Operators mixup_fwd, mixup_out and mixup_bwd for either device: checks and allocation. Python validates first,
// with better messages; what is checked here is what memory safety needs when an operator is called directly.
//
// Device has
//   bool owns(const Tensor&)
//   Tensor empty(const Shape& sizes, const Shape& strides, ScalarType, const Tensor& like)
//   void mix(const char* op, const Mixing&)      fills `out`, the result (clean samples in front, if kept)
//   void unmix(const char* op, const Mixing&)    from `x`, the gradient of the result, fills `out`, that of the samples
#pragma once

#include "mixup_tensors.h"

namespace icm {

using OptionalTensor = std::optional<Tensor>;

struct Mixing {
  const Tensor& x;  // dense per sample, as is out
  const Tensor& out;
  Partners partners;
  SampleLayout layout;
  bool keep_clean;
  FloatVector mean, std;  // with uint8 samples
};

// x itself, or a contiguous copy when its samples are not dense.
template <typename Device>
Tensor dense_samples(const char* op, const Tensor& x, const Tensor& index, const Tensor& lam,
                     const OptionalTensor& box, bool* dense) {
  check_device<Device>(op, {&x, &index, &lam});
  if (box.has_value()) check_device<Device>(op, {&*box});
  STD_TORCH_CHECK(x.dim() >= (box.has_value() ? 3 : 1), op, ": expected samples (B, ...), images with a box");
  *dense = is_dense_per_sample(x, box.has_value());
  return *dense ? x : torch::stable::contiguous(x);
}

template <typename Device>
void mix_into(const char* op, const Tensor& dense_x, const Tensor& index, const Tensor& lam,
              const OptionalTensor& box, const OptionalTensor& mean, const OptionalTensor& std,
              bool keep_clean, const Tensor& out) {
  const bool is_bytes = dense_x.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(mean.has_value() == is_bytes && std.has_value() == is_bytes, op,
                  ": expected mean and std with uint8 samples, and with no other");
  STD_TORCH_CHECK(is_bytes || out.scalar_type() == dense_x.scalar_type(), op,
                  ": expected a result of the samples' type");
  STD_TORCH_CHECK(!is_bytes || dense_x.dim() >= 2, op, ": expected uint8 samples (B, C, ...)");
  Mixing mixing{dense_x,
                out,
                partners(op, index, lam, box, dense_x.size(0)),
                sample_layout(dense_x, box.has_value(), is_bytes),
                keep_clean,
                {},
                {}};
  if (is_bytes) {
    check_device<Device>(op, {&*mean, &*std});
    mixing.mean = float_vector(op, "mean", *mean, dense_x.size(1));
    mixing.std = float_vector(op, "std", *std, dense_x.size(1));
  }
  if (out.numel() > 0) Device::mix(op, mixing);
}

template <typename Device>
Tensor mixup_fwd(Tensor x, Tensor index, Tensor lam, OptionalTensor box, OptionalTensor mean,
                 OptionalTensor std, bool keep_clean, std::optional<ScalarType> dtype) {
  constexpr const char* op = "mixup_fwd";
  bool dense;
  const Tensor from = dense_samples<Device>(op, x, index, lam, box, &dense);
  const bool is_bytes = x.scalar_type() == ScalarType::Byte;
  Shape shape = shape_of(x);
  shape[0] *= keep_clean ? 2 : 1;
  Tensor out = Device::empty(shape, result_strides(x, dense),
                             is_bytes ? dtype.value_or(ScalarType::Float) : x.scalar_type(), x);
  mix_into<Device>(op, from, index, lam, box, mean, std, keep_clean, out);
  return out;
}

// Elements from the first to the last, for tensors of dense samples.
inline int64_t span(const Tensor& x) {
  if (x.numel() == 0) return 0;
  return (x.size(0) - 1) * x.stride(0) + x.numel() / x.size(0);
}

inline bool overlap(const Tensor& a, const Tensor& b) {
  const char *first = static_cast<const char*>(a.data_ptr()),
             *second = static_cast<const char*>(b.data_ptr());
  return first < second + span(b) * int64_t(b.element_size()) &&
         second < first + span(a) * int64_t(a.element_size());
}

template <typename Device>
void mixup_out(Tensor out, Tensor x, Tensor index, Tensor lam, OptionalTensor box, OptionalTensor mean,
               OptionalTensor std, bool keep_clean) {
  constexpr const char* op = "mixup_out";
  bool dense;
  const Tensor from = dense_samples<Device>(op, x, index, lam, box, &dense);
  check_device<Device>(op, {&out});
  Shape shape = shape_of(x);
  shape[0] *= keep_clean ? 2 : 1;
  STD_TORCH_CHECK(shape_of(out) == shape, op, ": expected out of the result's shape");
  const Shape strides = result_strides(x, dense);
  bool fits = out.numel() == 0 || out.size(0) == 1 || out.stride(0) >= out.numel() / out.size(0);
  for (size_t d = 1; d < shape.size(); ++d) fits &= shape[d] == 1 || out.stride(int64_t(d)) == strides[d];
  STD_TORCH_CHECK(fits, op, ": expected out in the memory format of x");
  STD_TORCH_CHECK(!overlap(out, from), op, ": expected out not to overlap x");
  mix_into<Device>(op, from, index, lam, box, mean, std, keep_clean, out);
}

template <typename Device>
Tensor mixup_bwd(Tensor grad, Tensor index, Tensor lam, OptionalTensor box, bool keep_clean) {
  constexpr const char* op = "mixup_bwd";
  bool dense;
  const Tensor from = dense_samples<Device>(op, grad, index, lam, box, &dense);
  STD_TORCH_CHECK(!keep_clean || grad.size(0) % 2 == 0, op,
                  ": expected gradients of clean and mixed samples");
  Shape shape = shape_of(grad);
  shape[0] /= keep_clean ? 2 : 1;
  Tensor dx = Device::empty(shape, result_strides(grad, dense), grad.scalar_type(), grad);
  const Mixing mixing{from,
                      dx,
                      partners(op, index, lam, box, shape[0]),
                      sample_layout(from, box.has_value(), false),
                      keep_clean,
                      {},
                      {}};
  if (dx.numel() > 0) Device::unmix(op, mixing);
  return dx;
}

}  // namespace icm
