// How mixing on the CPU is cut up: chunks over threads, and runs of equal treatment within a chunk.
//
// Parallel over chunks of all samples, chunk outermost and samples innermost, each after the one that it is the partner
// of: what was just read as partner is read again as own from the core's own cache, so that memory is read once.
#pragma once

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "../mixup_tensors.h"
#include "tensors.h"
#include "workspace.h"

namespace icm {

// A chunk of two samples fits a core's second-level cache with room to spare. Between 32 and 150 KB it made no
// difference that could be told from noise; 8 KB, and 256 KB of a cache of 1 MiB, lost a third.
inline constexpr int64_t kChunkBytes = 128 << 10;
// Results from this size on are large: no cache keeps them, and they are got from the system at every call.
inline constexpr int64_t kLargeBytes = 16 << 20;

// Large results are written past the caches (2.8 ms against 4.1 ms at 64x3x224x224 float32), except
// for runs too short to fill many lines.
inline constexpr int64_t kLeastStreamBytes = 2 << 10;

// Streamed stores need whole vectors at their own alignment: no steps of an element lead there from an odd address.
inline bool streams(const Tensor& out) {
  return out.numel() * int64_t(out.element_size()) >= kLargeBytes &&
         uintptr_t(out.data_ptr()) % uintptr_t(out.element_size()) == 0;
}

struct Chunks {
  int64_t elements, count;

  // Equal ones, whole cache lines each.
  Chunks(int64_t size, int64_t element_bytes) {
    const int64_t wanted = std::max<int64_t>((size * element_bytes + kChunkBytes - 1) / kChunkBytes, 1);
    elements = std::max(round_up((size + wanted - 1) / wanted, kCacheLine), kCacheLine);
    count = (size + elements - 1) / elements;
  }
};

// Elements [begin, end) of a sample; sample -1: none.
struct Piece {
  int64_t sample, begin, end;
};

// body(thread, piece, the piece that this thread takes next) for every chunk of every sample, in this order.
template <typename Body>
void for_each_chunk(const Chunks& chunks, const int64_t* order, int64_t samples, int64_t size,
                    int64_t threads, const Body& body) {
  parallel_ranges(threads, chunks.count * samples, [&](int64_t thread, int64_t first, int64_t last) {
    const auto piece = [&](int64_t task) -> Piece {
      if (task >= last) return {-1, 0, 0};
      const int64_t begin = task / samples * chunks.elements;
      return {order[task % samples], begin, std::min(size, begin + chunks.elements)};
    };
    for (int64_t task = first; task < last; ++task) body(thread, piece(task), piece(task + 1));
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

// Every sample once, after the one that it is the partner of where that can be. `taken`: scratch of the same length.
template <typename acc_t>
void order_by_partner(const Sample<acc_t>* plan, int64_t batch, int64_t* order, bool* taken) {
  fill(taken, batch, false);
  for (int64_t i = 0, count = 0; i < batch; ++i)
    for (int64_t k = i; k >= 0 && k < batch && !taken[k]; k = plan[k].partner) {
      taken[k] = true;
      order[count++] = k;
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
