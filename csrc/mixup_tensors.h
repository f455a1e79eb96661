// How the tensors of mixing lie in memory, for both devices. icm_fast/operators/mixup.py holds the same rule of
// strides for the fake kernels.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "float_vector.h"
#include "mixup_math.h"

namespace icm {

using Shape = std::vector<int64_t>;

inline Shape shape_of(const torch::stable::Tensor& x) { return Shape(x.sizes().begin(), x.sizes().end()); }

// Whether each sample is one run of memory, its dimensions in any order; with a box also whether an image row is.
inline bool is_dense_per_sample(const torch::stable::Tensor& x, bool has_box) {
  if (x.numel() == 0) return false;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 1; d < x.dim(); ++d)
    if (x.size(d) != 1) dims.push_back({x.stride(d), x.size(d)});
  std::sort(dims.begin(), dims.end());
  int64_t run = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != run) return false;
    run *= size;
  }
  if (!has_box) return true;
  const int64_t h = x.dim() - 2, w = x.dim() - 1;
  return x.size(h) == 1 || x.size(w) == 1 || x.stride(h) == x.size(w) * x.stride(w);
}

// Strides of a result of these sizes: those of dense samples are kept, all else is contiguous.
inline Shape result_strides(const torch::stable::Tensor& x, bool dense) {
  Shape strides(size_t(x.dim()), 1);
  int64_t run = 1;
  for (int64_t d = x.dim() - 1; d >= 0; --d) {
    strides[size_t(d)] = dense && d > 0 ? x.stride(d) : run;
    run *= std::max<int64_t>(x.size(d), 1);
  }
  return strides;
}

inline torch::stable::Tensor new_strided(const Shape& sizes, const Shape& strides,
                                         torch::headeronly::ScalarType type, int32_t device_type,
                                         int32_t device_index) {
  return new_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type, device_type, device_index);
}

// For dense samples. The channel is dimension 1.
inline SampleLayout sample_layout(const torch::stable::Tensor& x, bool has_box, bool has_channels) {
  const int64_t batch = x.size(0), size = batch == 0 ? 0 : x.numel() / batch;
  SampleLayout layout{
      size, 1, std::max<int64_t>(size, 1), std::max<int64_t>(size, 1), 1, std::max<int64_t>(size, 1)};
  if (has_box && size > 0) {
    const int64_t h = x.dim() - 2, w = x.dim() - 1;
    layout.rows = x.size(h);
    if (x.size(w) != 1) {
      layout.pixel = x.stride(w);
      layout.row = x.size(w) * layout.pixel;
    } else if (x.size(h) != 1) {
      layout.pixel = layout.row = x.stride(h);
    }
  }
  if (has_channels && size > 0 && x.size(1) != 1) {
    layout.channels = x.size(1);
    layout.channel_stride = x.stride(1);
  }
  return layout;
}

// Index, lam and box as they came: any stride.
struct Partners {
  int64_t batch;
  const int64_t* index;
  int64_t index_stride;
  FloatVector lam;
  const int64_t* box;  // or null
  int64_t box_stride, box_element_stride;

  ICM_HOST_DEVICE int64_t of(int64_t i) const { return index[i * index_stride]; }
  ICM_HOST_DEVICE Box box_of(int64_t i, const SampleLayout& layout) const {
    return box == nullptr ? Box{0, 0, 0, 0}
                          : box_in_elements(box + i * box_stride, box_element_stride, layout);
  }
};

inline Partners partners(const char* op, const torch::stable::Tensor& index, const torch::stable::Tensor& lam,
                         const std::optional<torch::stable::Tensor>& box, int64_t batch) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(index.dim() == 1 && index.size(0) == batch && index.scalar_type() == ScalarType::Long, op,
                  ": expected int64 index of shape (", batch, ",)");
  Partners p{};
  p.batch = batch;
  p.index = static_cast<const int64_t*>(index.data_ptr());
  p.index_stride = index.stride(0);
  p.lam = float_vector(op, "lam", lam, batch);
  if (box.has_value()) {
    const int64_t last = box->dim() - 1;
    STD_TORCH_CHECK(box->scalar_type() == ScalarType::Long && last >= 0 && last <= 1 &&
                        box->size(last) == 4 && (last == 0 || box->size(0) == batch),
                    op, ": expected int64 box of shape (4,) or (", batch, ", 4)");
    p.box = static_cast<const int64_t*>(box->data_ptr());
    p.box_stride = last == 0 ? 0 : box->stride(0);
    p.box_element_stride = box->stride(last);
  }
  return p;
}

}  // namespace icm
