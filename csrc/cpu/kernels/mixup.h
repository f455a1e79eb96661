// What the mixing kernels read and write: runs of elements whose weights are the same throughout.
#pragma once

#include <cstdint>

#include "scalar_types.h"

namespace icm {

// What to ask of memory before it is needed: the source that is in no cache yet, and the same of the run after this one,
// which is taken to be as long. Null: nothing.
template <typename scalar_t>
struct Ahead {
  const scalar_t *here, *next;
};

template <typename scalar_t>
struct MixupKernels {
  using acc_t = acc_type<scalar_t>;
  // out[k] = sum_s weights[s] * sources[s][k], added in that order. A single weight of 1 is a copy, bit for bit;
  // no source gives 0. `stream`: write past the caches; only then anything is asked for ahead.
  void (*weighted_sum)(const scalar_t* const* sources, const acc_t* weights, int64_t sources_count,
                       int64_t count, scalar_t* out, bool stream, Ahead<scalar_t> ahead);
};

// Of each channel: out = mix * scale + shift. One channel throughout, or `period` channels in turn that start
// at `phase`; then scale and shift repeat beyond the period by kPixelTablePadding entries.
template <typename acc_t>
struct PixelTable {
  const acc_t* scale;
  const acc_t* shift;
  int64_t period, phase;
};

inline constexpr int64_t kPixelTablePadding = 16;  // the lanes of the widest vector

template <typename out_t>
struct PixelKernels {
  using acc_t = acc_type<out_t>;
  // out[k] = (w_own * own[k] + w_partner * partner[k]) * scale + shift; a source of weight 0 is not read.
  void (*normalise)(const uint8_t* own, const uint8_t* partner, acc_t w_own, acc_t w_partner,
                    PixelTable<acc_t> table, int64_t count, out_t* out, bool stream);
};

}  // namespace icm
