// Cross-entropy against mixed targets on CUDA. Equations in ../row_loss_math.h, checks and allocation in
// ../row_loss_operators.h, the forward pass in row_losses.h. The gradient is one read and one write of (B, C).
#include "row_losses.h"

namespace icm {
namespace {

template <typename T>
struct SoftTargetRows : Logits2d<T> {
  using acc_t = acc_type<T>;
  static constexpr int kResidentBlocks = sizeof(acc_t) == 4 ? 2 : 1;
  MixedLabels labels;
  const acc_t* class_weight;  // (C,) or null
  acc_t kept;                 // what label smoothing leaves
  Smoothing<acc_t> smoothing;

  struct Target {
    acc_t weight_a, weight_b, score_a, score_b;  // of its classes; the scores are their logits
    bool is_mixed, valid;
  };
  __device__ __forceinline__ SoftTarget<acc_t> soft_target_of(int64_t i) const {
    return soft_target(labels, i, this->classes, class_weight, kept);
  }
  __device__ __forceinline__ bool is_valid() const { return true; }
  __device__ __forceinline__ LogitRow<T> row(int64_t i) const { return LogitRow<T>(this->at(i)); }
  __device__ __forceinline__ Target target(int64_t i) const {
    const SoftTarget<acc_t> soft = soft_target_of(i);
    if (!soft.valid) return {};
    return {soft.weight_a, soft.weight_b, row(i).at(soft.a), row(i).at(soft.b), soft.a != soft.b, true};
  }
  __device__ __forceinline__ acc_t term(const Target& target, const RowTotals<acc_t>& row) const {
    const auto log2_of = [](acc_t x) { return log2(x); };
    const auto negative_log = [&](acc_t score) {
      const acc_t t = shifted(score, row.maximum);
      return log_ratio<acc_t>(row.sum, exp2_flushed(t), t, log2_of);
    };
    acc_t total = target.weight_a * negative_log(target.score_a);
    if (target.is_mixed) total += target.weight_b * negative_log(target.score_b);
    if (smoothing.exists()) total += log2_of(row.sum) * smoothing.total() - row.smoothed;
    return total * acc_t(kLn2);
  }
};

template <typename scalar_t>
struct GradientArguments {
  using acc_t = acc_type<scalar_t>;
  Teams teams;
  SoftTargetRows<scalar_t> rows;
  RowStats<acc_t> stats;
  IncomingGradient<acc_t> incoming;
  scalar_t* dlogits;  // contiguous
};

// A row's gradient: d_c = e_c factor - g u_c, u_c as the row has it.
template <typename scalar_t>
class RowGradientOf {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int kSize = Held<scalar_t>::kSize;

  __device__ __forceinline__ RowGradientOf(const GradientArguments<scalar_t>& a, int64_t i)
      : smoothing_(a.rows.smoothing), target_(a.rows.soft_target_of(i)), maximum_(a.stats.maximum[i]) {
    if (target_.a == target_.b) target_.weight_b = 0;
    const acc_t total = smoothing_.exists() ? smoothing_.total() : acc_t(0);
    g_ = target_.valid ? a.incoming.of(i) : acc_t(__builtin_nan(""));
    factor_ = g_ * (target_.weight_a + target_.weight_b + total) / a.stats.sum[i];
  }
  // Of the classes from c on. p - q is formed before it is rounded, for the row's own classes too.
  __device__ __forceinline__ Pack<scalar_t, kSize> of(const Pack<scalar_t, kSize>& x, int64_t c,
                                                      int count) const {
    acc_t u[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k)
      u[k] = smoothing_.weight == nullptr ? smoothing_.share : k < count ? smoothing_.of(c + k) : acc_t(0);
    const int64_t at_a = target_.a - c, at_b = target_.b - c;
    if ((at_a >= 0 && at_a < kSize) || (at_b >= 0 && at_b < kSize)) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (at_a == k) u[k] += target_.weight_a;
        if (at_b == k) u[k] += target_.weight_b;
      }
    }
    return Pack<scalar_t, kSize>::of(
        [&](int k) { return exp2_flushed(shifted(x.value(k), maximum_)) * factor_ - g_ * u[k]; });
  }

 private:
  const Smoothing<acc_t>& smoothing_;
  SoftTarget<acc_t> target_;
  acc_t maximum_, g_, factor_;
};

inline constexpr int kGradientPacks = 4;

template <typename scalar_t>
__global__ void __launch_bounds__(kTeamThreads, sizeof(scalar_t) == 8 ? 2 : 4)
    cross_entropy_gradient_kernel(const GradientArguments<scalar_t> a) {
  constexpr int kSize = Held<scalar_t>::kSize;
  const Place place = place_in(a.teams);
  if (place.size == 0) return;
  const int64_t i = place.row;
  const scalar_t* const row = a.rows.at(i);
  scalar_t* const out = a.dlogits + i * place.size;
  const Packs<kSize> packs(a.teams, place, out);
  const bool all_whole = packs.aligned(row) && !packs.has_part;
  for_pack_groups<kGradientPacks>(all_whole, [&](auto group) {
    Pack<scalar_t, kSize> x[group.count];
    group.load(x, packs, row);
    const RowGradientOf<scalar_t> gradient(a, i);
    group.for_each(packs, [&](int u, int64_t c, int count) {
      store_pack<false>(out + c, gradient.of(x[u], c, count), count, true);
    });
  });
}

// The sum of the class weights, in one block and so in one order.
template <typename acc_t>
__global__ void __launch_bounds__(kMostRowThreads)
    sum_class_weights_kernel(const acc_t* weight, int32_t classes, acc_t* result) {
  double sum = 0;
  for (int c = int(threadIdx.x); c < classes; c += int(blockDim.x)) sum += double(weight[c]);
  sum = ThreadTeam::block().reduce<Sum>(sum, static_cast<double*>(shared_memory()));
  if (threadIdx.x == 0) *result = acc_t(sum);
}

// Rows of one call, and the memory of what is derived for them.
template <typename scalar_t>
class PreparedRows {
 public:
  using acc_t = acc_type<scalar_t>;
  PreparedRows(const DeviceScope& scope, const SoftRows& given)
      : logits_(given.op, given.logits),
        rows_{logits_.logits(),
              given.labels,
              static_cast<const acc_t*>(given.class_weight),
              acc_t(1.0 - given.label_smoothing),
              {}} {
    if (given.label_smoothing == 0) return;
    Smoothing<acc_t>& smoothing = rows_.smoothing;
    smoothing.share = acc_t(given.label_smoothing / double(rows_.classes));
    smoothing.known_total = acc_t(double(smoothing.share) * double(rows_.classes));
    if (rows_.class_weight == nullptr) return;
    sum_ = new_contiguous({}, sum_type(given.logits), given.logits);
    smoothing.weight = rows_.class_weight;
    smoothing.sum_weight = data<const acc_t>(sum_);
    scope.launch({1, kMostRowThreads, kMostRowWarps * sizeof(double)}, sum_class_weights_kernel<acc_t>,
                 rows_.class_weight, rows_.classes, data<acc_t>(sum_));
  }
  const SoftTargetRows<scalar_t>& rows() const { return rows_; }

 private:
  LogitsInRows<scalar_t> logits_;
  SoftTargetRows<scalar_t> rows_;
  Tensor sum_;
};

template <typename scalar_t>
void write_gradient(const SoftRows& given, const RowGradient& out) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kSize = Held<scalar_t>::kSize;
  const DeviceScope scope(given.op, given.logits);
  const PreparedRows<scalar_t> prepared(scope, given);
  const SoftTargetRows<scalar_t>& rows = prepared.rows();
  scalar_t* const dlogits = data<scalar_t>(out.dlogits);
  const bool aligned = has_aligned_packs<kSize>(dlogits) && rows.classes % kSize == 0;
  const GradientArguments<scalar_t> a{
      teams_for<kSize, kGradientPacks>(rows.rows, rows.classes, aligned, false),
      rows,
      row_stats_of<acc_t>(out.stats),
      {out.grad, term_factor(out.reduction, rows.rows)},
      dlogits};
  launch_teams(scope, given.op, cross_entropy_gradient_kernel<scalar_t>, a, aligned, kSize);
}

struct Cuda : OnDevice {
  static Tensor empty(const Shape& sizes, ScalarType type, const Tensor& like) {
    return new_contiguous(sizes, type, like);
  }
  static void terms(const SoftRows& given, const RowLoss& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) {
      const DeviceScope scope(given.op, given.logits);
      launch_row_loss(scope, PreparedRows<decltype(zero)>(scope, given).rows(), out);
    });
  }
  static void gradient(const SoftRows& given, const RowGradient& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_gradient<decltype(zero)>(given, out); });
  }
};

}  // namespace
}  // namespace icm

ICM_CUDA_LIBRARY(m) {
  m.impl("mixup_cross_entropy_fwd.cuda", TORCH_BOX(&icm::mixup_cross_entropy_fwd<icm::Cuda>));
  m.impl("mixup_cross_entropy_bwd.cuda", TORCH_BOX(&icm::mixup_cross_entropy_bwd<icm::Cuda>));
}
