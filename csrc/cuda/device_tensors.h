// Ownership and allocation of tensors on the device, as the operators of csrc/*_operators.h ask for it.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <span>

#include "../stable_tensor.h"
#include "runtime.h"

namespace icm {

struct OnDevice {
  static bool owns(const Tensor& tensor) { return on_device(tensor); }
};

// A contiguous tensor on the device of `like`, without the heap: at small batches the host's time counts.
inline Tensor new_contiguous(std::span<const int64_t> sizes, ScalarType type, const Tensor& like) {
  std::array<int64_t, 64> strides;
  STD_TORCH_CHECK(sizes.size() <= strides.size(), "icm_fast: at most ", strides.size(), " dimensions");
  int64_t next = 1;
  for (size_t d = sizes.size(); d-- > 0; next *= std::max<int64_t>(sizes[d], 1)) strides[d] = next;
  return new_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type, device_type(),
                     like.get_device_index());
}
inline Tensor new_contiguous(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& like) {
  return new_contiguous(std::span(sizes.begin(), sizes.size()), type, like);
}

}  // namespace icm
