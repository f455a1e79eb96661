// Division of 31-bit numbers by a number that the host knows: a multiplication and a shift in place of some twenty
// instructions, which per pack of elements would be most of a kernel's.
#pragma once

#include <cstdint>

#include "../icm_math.h"

namespace icm {

// With 2^(s-1) < d <= 2^s and m = ceil(2^(31+s) / d): m*d - 2^(31+s) < d <= 2^s, so that n*m / 2^(31+s) exceeds n/d
// by less than 1/d for every n < 2^31, and m < 2^32.
struct Divisor {
  uint32_t divisor = 1, factor = 1u << 31;
  int32_t shift = 31;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(uint32_t(d)) {
    int32_t s = 0;
    while ((int64_t(1) << s) < d) ++s;
    shift = 31 + s;
    factor = uint32_t(((uint64_t(1) << shift) + uint64_t(d) - 1) / uint64_t(d));
  }
  ICM_HOST_DEVICE uint32_t quotient(uint32_t n) const { return uint32_t((uint64_t(n) * factor) >> shift); }
  ICM_HOST_DEVICE uint32_t remainder(uint32_t n) const { return n - quotient(n) * divisor; }
};

inline constexpr int64_t kMostDividend = (int64_t(1) << 31) - 1;

}  // namespace icm
