// Mixing on CUDA. Equations in ../mixup_math.h, checks and allocation in ../mixup_operators.h, the order of the work
// in teams.h: a sample is read from memory once, as partner it comes from the second-level cache.
//
// Values are read on the device only: a bad lam or index makes that sample NaN and is never used as an index.
#include <type_traits>

#include "../mixup_operators.h"
#include "mixup_packs.h"
#include "partner_lists.h"
#include "teams.h"

namespace icm {
namespace {

template <typename in_t, typename out_t>
inline constexpr int kPackOf = kPackBytes / int(std::max(sizeof(in_t), sizeof(out_t)));
// Packs of a thread, all of which are under way before the first is used. Packs of bytes are smaller.
template <typename in_t>
inline constexpr int kMixedPacks = sizeof(in_t) == 1 ? 8 : 4;
// Of a thread that keeps sums, one for each element.
template <typename scalar_t>
inline constexpr int kSummedPacks = sizeof(scalar_t) == 4 ? 4 : 2;
inline constexpr int kResidentBlocks = 3;  // on a multiprocessor, as far as registers go

// What both directions take. Gradients: x is the gradient of the mixed samples, clean that of the clean ones.
template <typename in_t, typename out_t>
struct Arguments {
  Teams teams;
  Samples<const in_t> x;
  Samples<out_t> out;
  Partners partners;
  SampleLayout layout;
  Image image;
  bool is_aligned;  // every row begins with a whole pack
};

template <typename in_t, typename out_t>
struct MixArguments : Arguments<in_t, out_t> {
  bool keep_clean;
  Pixels pixels;
};

template <typename scalar_t>
struct UnmixArguments : Arguments<scalar_t, scalar_t> {
  Samples<const scalar_t> clean;  // first == null: none
  PartnerLists lists;
};

template <typename acc_t>
struct Partnership {
  int64_t partner;
  MixWeights<acc_t> weights;
  SampleBox box;
};

template <typename acc_t, typename Arguments>
__device__ __forceinline__ Partnership<acc_t> partnership_of(const Arguments& a, int64_t i, int64_t partner) {
  const auto weights = mix_weights(a.partners.lam.template at<acc_t>(i), i, partner, a.partners.batch);
  const bool alone = is_bad(weights) || partner == i;
  return {partner, weights, SampleBox(alone ? Box{0, 0, 0, 0} : a.partners.box_of(i, a.layout))};
}

// Packs of a sample and of its partner on their way to the result.
template <typename in_t, typename out_t, typename Group>
class PackMix {
 public:
  using acc_t = acc_type<out_t>;
  static constexpr int kSize = kPackOf<in_t, out_t>;

  __device__ __forceinline__ PackMix(Group group, const MixArguments<in_t, out_t>& a,
                                     const Packs<kSize>& packs, int64_t i)
      : group_(group), a_(a), packs_(packs), i_(i) {}

  __device__ __forceinline__ Partnership<acc_t> load() {
    group_.load(own_, packs_, a_.x[i_]);
    const auto p = partnership_of<acc_t>(a_, i_, a_.partners.of(i_));
    const bool takes_part = p.weights.partner != 0 || p.box.exists();
    if (takes_part && !is_bad(p.weights)) group_.load(partner_, packs_, a_.x[p.partner]);
    return p;
  }
  // What else mixed_pack takes: of bytes, the table.
  template <typename... Table>
  __device__ __forceinline__ void store(const Partnership<acc_t>& p, const Table&... table) const {
    const int64_t batch = a_.partners.batch;
    out_t *const clean_row = a_.out[i_], *const mixed_row = a_.out[a_.keep_clean ? batch + i_ : i_];
    const bool clean_aligned = Group::whole || packs_.aligned(clean_row);
    group_.for_each(packs_, [&](int u, int64_t first, int count) {
      const uint32_t e = uint32_t(first);
      store_pack<true>(mixed_row + first,
                       mixed_pack<out_t>(own_[u], partner_[u], p.weights, a_.image, p.box, e, table...),
                       count, true);
      if (!a_.keep_clean) return;
      const SampleBox none({0, 0, 0, 0});
      store_pack<true>(clean_row + first,
                       mixed_pack<out_t>(own_[u], own_[u], {1, 0}, a_.image, none, e, table...), count,
                       clean_aligned);
    });
  }

 private:
  const Group group_;
  const MixArguments<in_t, out_t>& a_;
  const Packs<kSize>& packs_;
  const int64_t i_;
  // A partner that takes no part is not loaded; a copy of the own packs would wait for them.
  Pack<in_t, kSize> own_[Group::count] = {}, partner_[Group::count] = {};
};

template <typename in_t, typename out_t>
__global__ void __launch_bounds__(kTeamThreads, kResidentBlocks)
    mixup_fwd_kernel(const MixArguments<in_t, out_t> a) {
  constexpr int kSize = kPackOf<in_t, out_t>;
  const Place place = place_in(a.teams);
  const int64_t i = place.row;
  const Packs<kSize> packs(a.teams, place, a.out[a.keep_clean ? a.partners.batch + i : i]);
  const bool all_whole = a.is_aligned && !packs.has_part;
  if constexpr (std::is_same_v<in_t, uint8_t>) {
    // Loads are under way before the table is made. Packs begin up to one before the chunk.
    PackMix<in_t, out_t, PackGroup<kMixedPacks<in_t>, true>> whole({0}, a, packs, i);
    Partnership<acc_type<out_t>> p{0, {}, SampleBox({0, 0, 0, 0})};
    if (all_whole) p = whole.load();
    const int64_t past = place.first + a.teams.elements, size = a.teams.size;
    const PixelTable<acc_type<out_t>, kSize> table(a.pixels,
                                                   uint32_t(place.first < kSize ? 0 : place.first - kSize),
                                                   uint32_t(past < size ? past : size));
    sync_block();
    if (all_whole) return whole.store(p, table);
    for_each_pack<kMixedPacks<in_t>>([&](auto group) {
      PackMix<in_t, out_t, decltype(group)> one(group, a, packs, i);
      const auto p = one.load();
      one.store(p, table);
    });
  } else {
    for_pack_groups<kMixedPacks<in_t>>(all_whole, [&](auto group) {
      PackMix<in_t, out_t, decltype(group)> mix(group, a, packs, i);
      const auto p = mix.load();
      mix.store(p);
    });
  }
}

// Sums of weighted gradients; the first term is its product alone. A weight of 0 takes no part.
template <typename scalar_t, int kSize, typename Group>
class PackSums {
 public:
  using acc_t = acc_type<scalar_t>;

  __device__ __forceinline__ PackSums(Group group, const Packs<kSize>& packs, const Image& image)
      : group_(group), packs_(packs), image_(image) {}

  __device__ __forceinline__ void add(const scalar_t* row, acc_t outside, acc_t inside,
                                      const SampleBox& box) {
    if (outside == 0 && !box.exists()) return;
    Pack<scalar_t, kSize> g[Group::count];
    group_.load(g, packs_, row);
    group_.for_each(packs_, [&](int u, int64_t first, int) {
      if (box.exists()) {
        BoxWalk walk(image_, box, uint32_t(first));
#pragma unroll
        for (int k = 0; k < kSize; ++k, walk.advance()) {
          const acc_t w = walk.inside() ? inside : outside;
          if (w != 0) sum_[u][k] = fused_multiply_add(w, g[u].value(k), sum_[u][k]);
        }
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum_[u][k] = fused_multiply_add(outside, g[u].value(k), sum_[u][k]);
      }
    });
  }
  __device__ __forceinline__ void store(scalar_t* row) const {
    group_.for_each(packs_, [&](int u, int64_t first, int count) {
      const auto result = Pack<scalar_t, kSize>::of([&](int k) { return sum_[u][k]; });
      store_pack<true>(row + first, result, count, true);
    });
  }

 private:
  const Group group_;
  const Packs<kSize>& packs_;
  const Image& image_;
  acc_t sum_[Group::count][kSize] = {};
};

template <typename scalar_t>
__global__ void __launch_bounds__(kTeamThreads, kResidentBlocks)
    mixup_bwd_kernel(const UnmixArguments<scalar_t> a) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = kPackOf<scalar_t, scalar_t>;
  const Place place = place_in(a.teams);
  if (place.size == 0) return;
  const int64_t i = place.row;
  const Packs<kSize> packs(a.teams, place, a.out[i]);
  for_pack_groups<kSummedPacks<scalar_t>>(a.is_aligned && !packs.has_part, [&](auto group) {
    PackSums<scalar_t, kSize, decltype(group)> sums(group, packs, a.image);
    if (a.clean.first != nullptr) sums.add(a.clean[i], acc_t(1), acc_t(1), SampleBox({0, 0, 0, 0}));
    const auto own = partnership_of<acc_t>(a, i, a.partners.of(i));
    sums.add(a.x[i], own.weights.own, acc_t(0), own.box);
    for (int32_t k = a.lists.first[i]; k >= 0; k = a.lists.next[k]) {
      const auto other = partnership_of<acc_t>(a, k, i);
      sums.add(a.x[k], other.weights.partner, acc_t(1), other.box);
    }
    sums.store(a.out[i]);
  });
}

template <typename T>
Samples<T> samples(const Tensor& x) {
  return {data<T>(x), x.stride(0)};
}

// Elements of a sample that are looked up by row or channel are counted in 32 bits.
void check_size(const char* op, const Mixing& m) {
  const bool looks_up = m.partners.box != nullptr || m.x.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(!looks_up || m.layout.size <= kMostDividend - (1 << 20), op,
                  ": expected samples of less than 2^31 elements with a box or of uint8 on CUDA");
}

// Whether every sample begins with a whole pack.
template <int kSize, typename T>
bool begins_aligned(const Samples<T>& samples) {
  return has_aligned_packs<kSize>(samples.first) && samples.stride % kSize == 0;
}

template <typename in_t, typename out_t, int kPacks>
Arguments<in_t, out_t> arguments(const Mixing& m,
                                 int64_t most_elements = std::numeric_limits<int64_t>::max()) {
  constexpr int kSize = kPackOf<in_t, out_t>;
  const auto x = samples<const in_t>(m.x);
  const auto out = samples<out_t>(m.out);
  const bool aligned = begins_aligned<kSize>(out);
  return {teams_for<kSize, kPacks>(m.partners.batch, m.layout.size, aligned, true, most_elements),
          x,
          out,
          m.partners,
          m.layout,
          m.partners.box == nullptr ? Image{} : Image{Divisor(m.layout.rows), Divisor(m.layout.row)},
          aligned && begins_aligned<kSize>(x)};
}

template <typename in_t, typename out_t>
void mix(const char* op, const Mixing& m, const DeviceScope& scope) {
  constexpr int kSize = kPackOf<in_t, out_t>;
  constexpr bool kIsBytes = std::is_same_v<in_t, uint8_t>;
  using Table = PixelTable<acc_type<out_t>, kSize>;
  const int64_t most = kIsBytes ? Table::most_elements(m.layout) : std::numeric_limits<int64_t>::max();
  MixArguments<in_t, out_t> a{arguments<in_t, out_t, kMixedPacks<in_t>>(m, most), m.keep_clean, {}};
  if (kIsBytes) a.pixels = {m.mean, m.std, Divisor(m.layout.channels), Divisor(m.layout.channel_stride)};
  const size_t shared_bytes = kIsBytes ? Table::bytes(m.layout, int64_t(a.teams.elements) + kSize) : 0;
  launch_teams(scope, op, mixup_fwd_kernel<in_t, out_t>, a, begins_aligned<kSize>(a.out), kSize,
               shared_bytes);
}

template <typename scalar_t>
void unmix(const char* op, const Mixing& m, const DeviceScope& scope) {
  constexpr int kSize = kPackOf<scalar_t, scalar_t>;
  const Partners& p = m.partners;
  const ListedPartners listed(scope, op, m.x, p.index, p.index_stride, p.batch);
  UnmixArguments<scalar_t> a{arguments<scalar_t, scalar_t, kSummedPacks<scalar_t>>(m), {}, listed.lists()};
  if (m.keep_clean) {
    a.clean = a.x;
    a.x.first += p.batch * a.x.stride;
  }
  launch_teams(scope, op, mixup_bwd_kernel<scalar_t>, a, begins_aligned<kSize>(a.out), kSize);
}

struct Cuda : OnDevice {
  static Tensor empty(const Shape& sizes, const Shape& strides, ScalarType type, const Tensor& like) {
    return new_strided(sizes, strides, type, device_type(), like.get_device_index());
  }
  static void mix(const char* op, const Mixing& m) {
    check_size(op, m);
    const DeviceScope scope(op, m.x);
    dispatch_floating(op, m.out, [&](auto zero) {
      using out_t = decltype(zero);
      if (m.x.scalar_type() == ScalarType::Byte)
        icm::mix<uint8_t, out_t>(op, m, scope);
      else
        icm::mix<out_t, out_t>(op, m, scope);
    });
  }
  static void unmix(const char* op, const Mixing& m) {
    check_size(op, m);
    const DeviceScope scope(op, m.x);
    dispatch_floating(op, m.out, [&](auto zero) { icm::unmix<decltype(zero)>(op, m, scope); });
  }
};

}  // namespace
}  // namespace icm

ICM_CUDA_LIBRARY(m) {
  m.impl("mixup_fwd.cuda", TORCH_BOX(&icm::mixup_fwd<icm::Cuda>));
  m.impl("mixup_out.cuda", TORCH_BOX(&icm::mixup_out<icm::Cuda>));
  m.impl("mixup_bwd.cuda", TORCH_BOX(&icm::mixup_bwd<icm::Cuda>));
}
