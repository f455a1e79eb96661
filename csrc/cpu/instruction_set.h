// Which of the compiled instruction sets this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "kernels/scalar_types.h"

namespace icm {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

inline const char* instruction_set_name(InstructionSet set) {
  return set == InstructionSet::kAvx512 ? "avx512" : set == InstructionSet::kAvx2 ? "avx2" : "portable";
}

// torch's own variable caps what it uses (default, avx2, avx512); the kernels here obey it too.
inline InstructionSet most_allowed() {
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (cap != nullptr && std::strcmp(cap, "default") == 0) return InstructionSet::kPortable;
  if (cap != nullptr && std::strcmp(cap, "avx2") == 0) return InstructionSet::kAvx2;
  return InstructionSet::kAvx512;
}

inline InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  static const InstructionSet best = [] {
    const InstructionSet most = most_allowed();
    __builtin_cpu_init();
#if defined(ICM_HAVE_AVX512)
    if (most == InstructionSet::kAvx512 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
      return InstructionSet::kAvx512;
#endif
#if defined(ICM_HAVE_AVX2)
    // Every processor with AVX2 has F16C.
    if (most != InstructionSet::kPortable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return InstructionSet::kAvx2;
#endif
    return InstructionSet::kPortable;
  }();
  return best;
#else
  return InstructionSet::kPortable;
#endif
}

#if defined(ICM_HAVE_AVX2)
#define ICM_AVX2(x) x
#else
#define ICM_AVX2(x)
#endif
#if defined(ICM_HAVE_AVX512)
#define ICM_AVX512(x) x
#else
#define ICM_AVX512(x)
#endif
#define ICM_DECLARE_KERNEL(type, name)                                \
  namespace portable {                                                \
  extern const type name;                                             \
  }                                                                   \
  ICM_AVX2(namespace avx2 { extern const type name; })                \
  ICM_AVX512(namespace avx512 { extern const type name; })            \
  inline const type& select_##name() {                                \
    switch (best_instruction_set()) {                                 \
      ICM_AVX512(case InstructionSet::kAvx512 : return avx512::name;) \
      ICM_AVX2(case InstructionSet::kAvx2 : return avx2::name;)       \
      default:                                                        \
        return portable::name;                                        \
    }                                                                 \
  }

// Declares Kernels<T> NAME_float, NAME_double, NAME_bfloat16 and NAME_float16 of every instruction set, and
// defines NAME_kernels<T>(), which returns those of the best one.
#define ICM_DECLARE_KERNELS(Kernels, name)                                               \
  ICM_DECLARE_KERNEL(Kernels<float>, name##_float)                                       \
  ICM_DECLARE_KERNEL(Kernels<double>, name##_double)                                     \
  ICM_DECLARE_KERNEL(Kernels<bfloat16>, name##_bfloat16)                                 \
  ICM_DECLARE_KERNEL(Kernels<float16>, name##_float16)                                   \
  template <typename scalar_t>                                                           \
  const Kernels<scalar_t>& name##_kernels() {                                            \
    if constexpr (std::is_same_v<scalar_t, float>) return select_##name##_float();       \
    if constexpr (std::is_same_v<scalar_t, double>) return select_##name##_double();     \
    if constexpr (std::is_same_v<scalar_t, bfloat16>) return select_##name##_bfloat16(); \
    if constexpr (std::is_same_v<scalar_t, float16>) return select_##name##_float16();   \
  }

}  // namespace icm
