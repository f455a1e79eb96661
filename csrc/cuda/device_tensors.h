// Ownership and allocation of tensors on the device, as the operators of csrc/*_operators.h ask for it.
#pragma once

#include <algorithm>
#include <vector>

#include "../stable_tensor.h"
#include "runtime.h"

namespace icm {

struct OnDevice {
  static bool owns(const Tensor& tensor) { return on_device(tensor); }
};

// A contiguous tensor on the device of `like`.
inline Tensor new_contiguous(const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t next = 1;
  for (size_t d = sizes.size(); d-- > 0; next *= std::max<int64_t>(sizes[d], 1)) strides[d] = next;
  return new_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type, device_type(),
                     like.get_device_index());
}

}  // namespace icm
