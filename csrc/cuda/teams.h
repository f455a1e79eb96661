// How kernels that treat every element of a row alike divide their work: a team of threads takes one chunk of one
// row, a block has one or more teams, and over the grid rows run fastest, so that blocks which run together work on
// the same part of all rows: what one reads as its own another finds in the second-level cache as its partner's.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "divisor.h"
#include "packs.h"
#include "runtime.h"

namespace icm {

inline constexpr int kTeamThreads = 256;  // of a block
// Of the second-level cache, what the same chunk of all rows may take. Untuned.
inline constexpr int64_t kReuseBytes = int64_t(16) << 20;

struct Teams {
  int64_t rows, size;  // elements of a row
  int32_t team_bits;   // a team has 2^team_bits threads
  int32_t elements;    // of a chunk
  Divisor row_groups;  // rows, in groups of as many as a block has teams
};

// What the calling thread works on. A team beyond the last row has size 0.
struct Place {
  int64_t row, first, size;
  int lane;  // in the team
};

__device__ __forceinline__ Place place_in(const Teams& t) {
  const int thread = int(threadIdx.x), team = thread >> t.team_bits;
  const uint32_t chunk = t.row_groups.quotient(blockIdx.x), group = blockIdx.x - chunk * t.row_groups.divisor;
  const int64_t row = int64_t(group) * (kTeamThreads >> t.team_bits) + team;
  const bool exists = row < t.rows;
  return {exists ? row : 0, int64_t(chunk) * t.elements, exists ? t.size : 0, thread - (team << t.team_bits)};
}

// Keeps a number in a register: the compiler would rather compute it again at each use, which for positions in a row
// is half of a kernel's instructions.
template <typename T>
__device__ __forceinline__ void keep([[maybe_unused]] T& number) {
#if !defined(ICM_SIMT_EMULATION)
  if constexpr (sizeof(T) == 8)
    asm volatile("" : "+l"(number));
  else
    asm volatile("" : "+r"(number));
#endif
}

// The packs of one thread, aligned in the row at `out`: that is what is written. They begin up to a pack before the
// chunk does.
template <int kSize>
struct Packs {
  int64_t
      base;  // element of the row where the team's first pack begins; negative in a row that is not aligned
  int least, past;  // elements of the row, from base on
  int begin, step;  // of this thread's packs
  bool has_part;    // one of them exists in part; otherwise each has all its elements or none

  template <typename T>
  __device__ __forceinline__ Packs(const Teams& t, const Place& place, const T* out) {
    const int shift = int(reinterpret_cast<uintptr_t>(out) / sizeof(T) % kSize);
    base = place.first - shift;
    const int64_t left = place.size - base;
    least = base < 0 ? int(-base) : 0;
    past = left > t.elements ? t.elements : left < 0 ? 0 : int(left);
    begin = place.lane * kSize;
    step = kSize << t.team_bits;
    const unsigned whole = unsigned(past) / kSize, team_mask = (1u << t.team_bits) - 1;
    has_part =
        begin < least || (unsigned(past) % kSize != 0 && ((whole - unsigned(place.lane)) & team_mask) == 0);
    keep(base);
    keep(past);
    keep(step);
    keep(begin);
  }
  // From base on: where pack u begins, the first of its elements that exists, and how many do, none or fewer if it is
  // past the end.
  __device__ __forceinline__ int at(int u) const { return begin + u * step; }
  __device__ __forceinline__ int first(int u) const { return at(u) < least ? least : at(u); }
  __device__ __forceinline__ int count(int u) const {
    const int end = at(u) + kSize;
    return (end < past ? end : past) - first(u);
  }
  // Whether a row can be read in packs where the result is written in packs.
  template <typename T>
  __device__ __forceinline__ bool aligned(const T* row) const {
    return has_aligned_packs<kSize>(row + base);
  }
};

// Packs of a thread that are treated together: all of them where they are whole and every row is aligned, so that
// their loads are under way together and nothing else is in between; else one.
template <int kCount, bool kWhole>
struct PackGroup {
  static constexpr int count = kCount;
  static constexpr bool whole = kWhole;
  int first;

  // The packs of a row; what does not exist is left as it is.
  template <int kSize, typename T>
  __device__ __forceinline__ void load(Pack<T, kSize> (&loaded)[kCount], const Packs<kSize>& packs,
                                       const T* row, int64_t stride = 1) const {
    const bool aligned = kWhole || (stride == 1 && packs.aligned(row));
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int count = this->elements(packs, u);
      if (count > 0) loaded[u] = load_pack<kSize>(row + this->position(packs, u), count, aligned);
    }
  }
  // Calls body(u, first element, how many) for each pack that exists.
  template <int kSize, typename Body>
  __device__ __forceinline__ void for_each(const Packs<kSize>& packs, const Body& body) const {
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      if (const int count = this->elements(packs, u); count > 0) body(u, this->position(packs, u), count);
  }

 private:
  template <int kSize>
  __device__ __forceinline__ int elements(const Packs<kSize>& packs, int u) const {
    return kWhole ? (packs.at(first + u) < packs.past ? kSize : 0) : packs.count(first + u);
  }
  template <int kSize>
  __device__ __forceinline__ int64_t position(const Packs<kSize>& packs, int u) const {
    return packs.base + (kWhole ? packs.at(first + u) : packs.first(first + u));
  }
};

template <int kPacks, typename Body>
__device__ __forceinline__ void for_each_pack(const Body& body) {
#pragma unroll 1
  for (int u = 0; u < kPacks; ++u) body(PackGroup<1, false>{u});
}
template <int kPacks, typename Body>
__device__ __forceinline__ void for_pack_groups(bool all_whole, const Body& body) {
  if (all_whole)
    body(PackGroup<kPacks, true>{0});
  else
    for_each_pack<kPacks>(body);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t power_of_two(int64_t least) {
  int64_t result = 1;
  while (result < least) result *= 2;
  return result;
}

// For rows of `size` elements in packs of kSize, kPacks of them per thread. `aligned`: every row of the result begins
// with a whole pack. `reused`: rows are read by other rows' teams as well. A chunk has at most `most` elements, as
// long as that is some per thread.
template <int kSize, int kPacks>
Teams teams_for(int64_t rows, int64_t size, bool aligned, bool reused,
                int64_t most = std::numeric_limits<int64_t>::max()) {
  const int64_t packs = ceil_divide(size + (aligned ? 0 : kSize - 1), kSize);
  int64_t team = std::min<int64_t>(kTeamThreads, power_of_two(ceil_divide(packs, kPacks)));
  team = std::max(team, std::min<int64_t>(8, power_of_two(packs)));  // whole lines of 128 bytes
  while (reused && team > kWarp && rows * team * kPacks * kPackBytes > kReuseBytes) team /= 2;
  while (team > 1 && team * kPacks * kSize > most) team /= 2;
  Teams t{rows, size, std::countr_zero(uint64_t(team)), int32_t(team) * kPacks * kSize, {}};
  t.row_groups = Divisor(std::max<int64_t>(1, ceil_divide(rows, kTeamThreads / team)));
  return t;
}

// Launches one block for each chunk of each group of rows.
template <typename Arguments>
void launch_teams(const DeviceScope& scope, const char* op, void (*kernel)(Arguments),
                  const Arguments& arguments, bool aligned, int pack, size_t shared_bytes = 0) {
  const Teams& t = arguments.teams;
  const int64_t chunks = ceil_divide(t.size + (aligned ? 0 : pack - 1), t.elements);
  const int64_t blocks = int64_t(t.row_groups.divisor) * chunks;
  STD_TORCH_CHECK(blocks <= kMostDividend, op, ": expected fewer elements: ", blocks,
                  " blocks are more than a launch has");
  scope.launch({int(blocks), kTeamThreads, shared_bytes}, kernel, arguments);
}

}  // namespace icm
