// How mixing on the CPU is cut up: chunks over threads, and runs of equal treatment within a chunk.
//
// Parallel over chunks of all samples, chunk outermost and samples innermost: a sample's chunk is read as own and
// soon after (or before) as partner, from the cache the second time.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "../mixup_tensors.h"
#include "tensors.h"
#include "workspace.h"

namespace icm {

// One chunk of every sample fits kCacheBytes, so that a sample is read from memory as own and from the cache as partner.
// Untuned: on a machine with 32 MiB of cache a quarter of it did as well as half, 1 MiB lost a quarter in short runs.
inline constexpr int64_t kCacheBytes = 8 << 20, kLeastChunkBytes = 4 << 10, kMostChunkBytes = 1 << 20;
// Results from this size on are large: no cache keeps them, and they are got from the system at every call.
inline constexpr int64_t kLargeBytes = 16 << 20;

// A new large array is as yet no memory, and most of the time of its first write goes into getting 4 KiB at a time
// (14 ms against 8 ms for 38 MB of mixed images; the gradient of icm_loss, written bit by bit, got slower by it).
// Advice: nothing depends on its being taken.
inline void ask_for_huge_pages(const Tensor& out) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const int64_t bytes = out.numel() * int64_t(out.element_size());
  if (bytes < kLargeBytes) return;
  const uintptr_t first = (uintptr_t(out.data_ptr()) + page - 1) / page * page;
  const uintptr_t last = (uintptr_t(out.data_ptr()) + uintptr_t(bytes)) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Large results are written past the caches (2.8 ms against 4.1 ms at 64x3x224x224 float32), except
// for runs too short to fill many lines.
inline constexpr int64_t kLeastStreamBytes = 2 << 10;

inline bool streams(const Tensor& out) { return out.numel() * int64_t(out.element_size()) >= kLargeBytes; }

struct Chunks {
  int64_t elements, count;

  Chunks(int64_t batch, int64_t size, int64_t element_bytes) {
    const int64_t bytes =
        std::clamp(kCacheBytes / std::max<int64_t>(batch, 1), kLeastChunkBytes, kMostChunkBytes);
    elements = bytes / element_bytes;
    count = (size + elements - 1) / elements;
  }
};

// body(thread, sample, begin, end) for every chunk of every sample.
template <typename Body>
void for_each_chunk(const Chunks& chunks, int64_t samples, int64_t size, int64_t threads, const Body& body) {
  parallel_ranges(threads, chunks.count * samples, [&](int64_t thread, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task / samples * chunks.elements;
      body(thread, task % samples, begin, std::min(size, begin + chunks.elements));
    }
#if defined(__x86_64__)
    _mm_sfence();  // streamed stores are not ordered by the release of the thread pool
#endif
  });
}

// Where the treatment of an image changes next after element e, and whether e is inside the box.
struct Run {
  int64_t end;
  bool inside;
};

inline Run run_at(const Box& box, const SampleLayout& layout, int64_t e) {
  if (box.y2 == 0) return {layout.size, false};
  const int64_t line = e / layout.row, start = line * layout.row, y = line % layout.rows;
  if (y < box.y1) return {start + (box.y1 - y) * layout.row, false};
  if (y >= box.y2) return {start + (layout.rows - y + box.y1) * layout.row, false};
  if (e < start + box.x1) return {start + box.x1, false};
  if (e < start + box.x2) return {start + box.x2, true};
  return {start + layout.row, false};
}

// body(first, last) for the part of every row of the box that lies in [begin, end).
template <typename Body>
void for_each_box_row(const Box& box, const SampleLayout& layout, int64_t begin, int64_t end,
                      const Body& body) {
  if (box.y2 == 0) return;
  const int64_t plane = layout.rows * layout.row;
  for (int64_t start = begin / plane * plane; start < end; start += plane)
    for (int64_t y = box.y1; y < box.y2; ++y) {
      const int64_t first = std::max(begin, start + y * layout.row + box.x1);
      const int64_t last = std::min(end, start + y * layout.row + box.x2);
      if (first < last) body(first, last);
    }
}

template <typename acc_t>
struct Sample {
  int64_t partner;
  MixWeights<acc_t> weights;
  Box box;
};

template <typename acc_t>
void prepare_samples(const Partners& p, const SampleLayout& layout, Sample<acc_t>* out) {
  for (int64_t i = 0; i < p.batch; ++i) {
    const int64_t partner = p.of(i);
    const auto weights = mix_weights(p.lam.at<acc_t>(i), i, partner, p.batch);
    const bool alone = is_bad(weights) || partner == i;
    out[i] = {partner, weights, alone ? Box{0, 0, 0, 0} : p.box_of(i, layout)};
  }
}

// Where the samples of a tensor are.
template <typename scalar_t>
struct Samples {
  scalar_t* first;
  int64_t stride;
  scalar_t* operator[](int64_t i) const { return first + i * stride; }
};

template <typename scalar_t>
Samples<scalar_t> samples(const Tensor& x) {
  return {data<scalar_t>(x), x.stride(0)};
}

}  // namespace icm
