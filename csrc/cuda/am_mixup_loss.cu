// Asymptotic Midpoint Mixup on CUDA: cross-entropy of rows of logits mixed with their partners. Equations in
// ../row_loss_math.h, checks and allocation in ../row_loss_operators.h, the forward pass in row_losses.h.
//
// A mixed row exists only in registers: the gradient forms it again, once for the row itself and once for its
// partner. Deterministic: own part first, then the rows that have this one as partner, in ascending order.
#include "../mixup_math.h"
#include "partner_lists.h"
#include "row_losses.h"

namespace icm {
namespace {

// What a logit of a mixed row is, given the row's own and its partner's. A row of weight 0 leaves nothing.
template <typename acc_t>
struct LogitMix {
  acc_t own_weight;
  __device__ __forceinline__ acc_t operator()(acc_t own, acc_t partner) const {
    const acc_t rest = partner_weight(own_weight);
    const auto multiply_add = [](acc_t a, acc_t b, acc_t c) { return fused_multiply_add(a, b, c); };
    const acc_t mixed = mix_values(own_weight, own, rest, partner, multiply_add);
    return rest == 0 ? own : own_weight == 0 ? partner : mixed;
  }
};

template <typename T>
class MixedLogitRow {
 public:
  using acc_t = acc_type<T>;
  struct Raw {
    typename LogitRow<T>::Raw own, partner;
  };
  __device__ __forceinline__ MixedLogitRow(const LogitRow<T>& own, const LogitRow<T>& partner,
                                           acc_t own_weight)
      : own_(own), partner_(partner), mix_{own_weight} {}
  __device__ __forceinline__ Raw load(int first, int count) const {
    return {own_.load(first, count), partner_.load(first, count)};
  }
  __device__ __forceinline__ acc_t value(const Raw& raw, int k) const {
    return mix_(own_.value(raw.own, k), partner_.value(raw.partner, k));
  }
  __device__ __forceinline__ acc_t at(int64_t c) const { return mix_(own_.at(c), partner_.at(c)); }

 private:
  LogitRow<T> own_, partner_;
  LogitMix<acc_t> mix_;
};

template <typename T>
struct PartnerRows : Logits2d<T> {
  using acc_t = acc_type<T>;
  static constexpr int kResidentBlocks = 1;  // two rows in registers
  PartnerLabels given;
  FloatVector rate;
  Smoothing<acc_t> smoothing;  // none

  struct Target {
    acc_t score;  // the mixed logit of its class
    bool valid;
  };
  __device__ __forceinline__ MixedRow<acc_t> mixed_row_of(int64_t i) const {
    return mixed_row(given, i, this->rows, this->classes, rate.at<acc_t>(0));
  }
  __device__ __forceinline__ bool is_valid() const { return lam_is_valid(rate.at<acc_t>(0)); }
  __device__ __forceinline__ MixedLogitRow<T> row(int64_t i) const {
    const MixedRow<acc_t> mixed = mixed_row_of(i);
    return {LogitRow<T>(this->at(i)), LogitRow<T>(this->at(mixed.partner)), mixed.own_weight};
  }
  __device__ __forceinline__ Target target(int64_t i) const {
    const MixedRow<acc_t> mixed = mixed_row_of(i);
    return {mixed.valid ? row(i).at(mixed.label) : acc_t(0), mixed.valid};
  }
  __device__ __forceinline__ acc_t term(const Target& target, const RowTotals<acc_t>& row) const {
    const acc_t t = shifted(target.score, row.maximum);
    return log_ratio<acc_t>(row.sum, exp2_flushed(t), t, [](acc_t x) { return log2(x); }) * acc_t(kLn2);
  }
};

template <typename scalar_t>
struct GradientArguments {
  using acc_t = acc_type<scalar_t>;
  Teams teams;
  PartnerRows<scalar_t> rows;
  PartnerLists lists;
  RowStats<acc_t> stats;
  IncomingGradient<acc_t> incoming;
  scalar_t* dlogits;  // contiguous
  bool is_aligned;    // every row of logits and of dlogits begins with a whole pack
};

// Of a thread, which keeps two rows' logits and a sum for each element.
inline constexpr int kSummedPacks = 2;

template <typename scalar_t, typename Group>
class GradientSums {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int kSize = Held<scalar_t>::kSize;
  using Loaded = Pack<scalar_t, kSize>[Group::count];

  __device__ __forceinline__ GradientSums(Group group, const GradientArguments<scalar_t>& a,
                                          const Packs<kSize>& packs)
      : group_(group), a_(a), packs_(packs) {}

  __device__ __forceinline__ void load(int64_t i, Loaded& loaded) const {
    group_.load(loaded, packs_, a_.rows.at(i));
  }
  // Adds weight * dM_i, where M_i is mixed of these logits.
  __device__ __forceinline__ void add(int64_t i, const MixedRow<acc_t>& target, acc_t weight,
                                      const Loaded& own, const Loaded& partner) {
    const LogitMix<acc_t> mix{target.own_weight};
    const acc_t g = weight * a_.incoming.of(i), maximum = a_.stats.maximum[i], factor = g / a_.stats.sum[i];
    group_.for_each(packs_, [&](int u, int64_t c, int) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        const acc_t mixed = mix(own[u].value(k), partner[u].value(k));
        sum_[u][k] = fused_multiply_add(exp2_flushed(shifted(mixed, maximum)), factor, sum_[u][k]);
      }
      const int64_t at = target.label - c;
      if (at < 0 || at >= kSize) return;
#pragma unroll
      for (int k = 0; k < kSize; ++k)
        if (at == k) sum_[u][k] -= g;
    });
  }
  __device__ __forceinline__ void store(scalar_t* row, bool is_invalid) const {
    group_.for_each(packs_, [&](int u, int64_t c, int count) {
      const auto d = Pack<scalar_t, kSize>::of(
          [&](int k) { return is_invalid ? acc_t(__builtin_nan("")) : sum_[u][k]; });
      store_pack<false>(row + c, d, count, true);
    });
  }

 private:
  const Group group_;
  const GradientArguments<scalar_t>& a_;
  const Packs<kSize>& packs_;
  acc_t sum_[Group::count][kSize] = {};
};

template <typename scalar_t>
__global__ void __launch_bounds__(kTeamThreads, sizeof(scalar_t) == 8 ? 2 : 3)
    am_gradient_kernel(const GradientArguments<scalar_t> a) {
  constexpr int kSize = Held<scalar_t>::kSize;
  const Place place = place_in(a.teams);
  if (place.size == 0) return;
  const int64_t j = place.row;
  scalar_t* const out = a.dlogits + j * place.size;
  const Packs<kSize> packs(a.teams, place, out);
  for_pack_groups<kSummedPacks>(a.is_aligned && !packs.has_part, [&](auto group) {
    using Sums = GradientSums<scalar_t, decltype(group)>;
    Sums sums(group, a, packs);
    typename Sums::Loaded own = {}, other = {};
    sums.load(j, own);
    // A maximum that is NaN marks an invalid target, and this row alone cannot tell of the others.
    const auto target = a.rows.mixed_row_of(j);
    const bool is_invalid = !target.valid || is_nan(a.stats.maximum[j]);
    if (!is_invalid) {
      if (target.own_weight != 0) {
        if (target.partner != j) sums.load(target.partner, other);
        sums.add(j, target, target.own_weight, own, other);
      }
      for (int32_t i = a.lists.first[j]; i >= 0; i = a.lists.next[i]) {
        const auto source = a.rows.mixed_row_of(i);
        const auto rest = partner_weight(source.own_weight);
        if (rest == 0) continue;
        sums.load(i, other);
        sums.add(i, source, rest, other, own);
      }
    }
    sums.store(out, is_invalid);
  });
}

template <typename scalar_t>
PartnerRows<scalar_t> partner_rows(const RowMix& given, const LogitsInRows<scalar_t>& logits) {
  return {logits.logits(), given.given, given.rate, {}};
}

template <typename scalar_t>
void write_gradient(const RowMix& given, const RowGradient& out) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = Held<scalar_t>::kSize, kPacks = kSummedPacks;
  const DeviceScope scope(given.op, given.logits);
  const LogitsInRows<scalar_t> logits(given.op, given.logits);
  const PartnerRows<scalar_t> rows = partner_rows(given, logits);
  const ListedPartners listed(scope, given.op, given.logits, given.given.index, given.given.index_stride,
                              rows.rows);
  scalar_t* const dlogits = data<scalar_t>(out.dlogits);
  const bool aligned = has_aligned_packs<kSize>(dlogits) && rows.classes % kSize == 0;
  const GradientArguments<scalar_t> a{
      teams_for<kSize, kPacks>(rows.rows, rows.classes, aligned, true),
      rows,
      listed.lists(),
      row_stats_of<acc_t>(out.stats),
      {out.grad, term_factor(out.reduction, rows.rows)},
      dlogits,
      aligned && rows.row_stride % kSize == 0 && has_aligned_packs<kSize>(rows.logits)};
  launch_teams(scope, given.op, am_gradient_kernel<scalar_t>, a, aligned, kSize);
}

struct Cuda : OnDevice {
  static Tensor empty(const Shape& sizes, ScalarType type, const Tensor& like) {
    return new_contiguous(sizes, type, like);
  }
  static void terms(const RowMix& given, const RowLoss& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) {
      const DeviceScope scope(given.op, given.logits);
      const LogitsInRows<decltype(zero)> logits(given.op, given.logits);
      launch_row_loss(scope, partner_rows(given, logits), out);
    });
  }
  static void gradient(const RowMix& given, const RowGradient& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_gradient<decltype(zero)>(given, out); });
  }
};

}  // namespace
}  // namespace icm

ICM_CUDA_LIBRARY(m) {
  m.impl("am_mixup_loss_fwd.cuda", TORCH_BOX(&icm::am_mixup_loss_fwd<icm::Cuda>));
  m.impl("am_mixup_loss_bwd.cuda", TORCH_BOX(&icm::am_mixup_loss_bwd<icm::Cuda>));
}
