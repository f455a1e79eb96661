// The 16-bit floating-point types as plain bits, and the type that their sums are kept in.
#pragma once

#include <cstdint>

namespace icm {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using acc_type = typename Accumulate<scalar_t>::type;

}  // namespace icm
