// The emulated device and the random numbers that decide who goes on.
#pragma once

#include "scheduler.h"

namespace icm::simt {

inline constexpr int kLanes = 32;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // splitmix64
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, count).
  size_t below(size_t count) { return size_t((next() >> 32) * count >> 32); }

 private:
  uint64_t state_;
};

Random& random_numbers();

// Whether the device accepts it.
Error check_launch(const Launch& how);

}  // namespace icm::simt
