// The formulae of a softmax in the base-2 domain, written once for host and device. V is a scalar or a vector of
// scalars, T the scalar.
#pragma once

#include "icm_math.h"

namespace icm {

// T = (S - M) * log2(e): subtract first, then T <= 0 exactly and e = 2^T <= 1.
template <typename V, typename T>
ICM_HOST_DEVICE V shifted(V s, T maximum) {
  return (s - maximum) * T(kLog2E);
}

// log2(sum / 2^d), where `target` is 2^d, without cancellation where that is representable: for a confident
// prediction the quotient is 1 + tiny, and exactly 1 when the target is the only term.
template <typename T, typename V, typename Log2>
ICM_HOST_DEVICE V log_ratio(V sum, V target, V d, Log2 log2) {
  const auto representable = target > T(0x1p-64);
  const V ratio = log2(sum / (representable ? target : V{} + T(1)));
  return representable ? ratio : ratio - d;
}

}  // namespace icm
