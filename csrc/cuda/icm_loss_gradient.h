// Gradient with respect to the logits, a tile of rows at a time:
//
//   dZ[i,j] = g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own])           P = e alpha_i,  Q = e w_i beta_j
//   dS[i,c] = sum_j dZ[i,j] Y[j,c]
//
// Each lane owns a class and a row and adds up that class's columns in the order of the plan, so nothing is
// scattered: no atomics, one order. The price is a second exponential for a column with two classes, since both of
// its classes form it.
#pragma once

#include "icm_loss_sums.h"

namespace icm {

// Factors of the gradient: alpha and beta hold the incoming gradient divided by the sums, own_loss what the target
// subtracts; the logits' gradient is theirs times `multiplier`.
template <typename acc_t>
struct GradientFactors {
  const acc_t *alpha, *own_loss;  // (rows,)
  const acc_t* beta;              // of each entry of the plan: that of its column
  acc_t multiplier;
  bool class_axis, pair_axis;
};

struct GradientOutput {
  void* dlogits;  // (rows, classes) contiguous
  LogitType type;
};

__device__ __forceinline__ void store_gradient(const GradientOutput& out, int64_t at, double value) {
  static_cast<double*>(out.dlogits)[at] = value;
}
__device__ __forceinline__ void store_gradient(const GradientOutput& out, int64_t at, float value) {
  switch (out.type) {
    case LogitType::kBFloat16:
      return from_acc(value, static_cast<bfloat16*>(out.dlogits) + at);
    case LogitType::kFloat16:
      return from_acc(value, static_cast<float16*>(out.dlogits) + at);
    default:
      return from_acc(value, static_cast<float*>(out.dlogits) + at);
  }
}

template <typename acc_t>
__device__ __forceinline__ acc_t load_logit(const Logits& logits, int64_t at) {
  if constexpr (sizeof(acc_t) == 8) return static_cast<const double*>(logits.values)[at];
  switch (logits.type) {
    case LogitType::kBFloat16:
      return to_acc(static_cast<const bfloat16*>(logits.values)[at]);
    case LogitType::kFloat16:
      return to_acc(static_cast<const float16*>(logits.values)[at]);
    default:
      return static_cast<const float*>(logits.values)[at];
  }
}

// What one lane knows of its row.
template <typename acc_t>
struct RowOfGradient {
  acc_t alpha, own_loss, weight;
  acc_t offset, shift;  // of a repaired batch
  Column<acc_t> own;
};

template <typename acc_t, int kRows, bool kFactored>
struct GradientTile {
  const Logits& logits;
  const Plan<acc_t>& plan;
  const LogSum<acc_t>& sums;
  const GradientFactors<acc_t>& factors;
  const Tile<acc_t, kRows, kFactored>& tile;
  acc_t sigma;

  // dZ of a column that this lane's row does not own, for a tile of T or of factors.
  struct Shared {
    acc_t self, self_as_b;

    __device__ __forceinline__ Shared(const GradientTile& g, int32_t slot)
        : self(g.tile.at(slot, lane_row<kRows>())), self_as_b(0) {
      if constexpr (kFactored) self_as_b = g.tile.partner_at(slot, lane_row<kRows>());
    }
    // The score by the expression of the sums, whichever class is self: a rounding apart, float64 would lose digits.
    template <bool kIsB>
    __device__ __forceinline__ acc_t dz(const GradientTile& g, const RowOfGradient<acc_t>& row,
                                        const Entry<acc_t>& entry, acc_t beta) const {
      const int r = lane_row<kRows>();
      acc_t e;
      if constexpr (kFactored) {
        const int32_t other = entry.other;
        if constexpr (kIsB)
          e = g.tile.at(other, r) * self_as_b;
        else
          e = self * (entry.w_other == acc_t(0) ? self_as_b : g.tile.partner_at(other, r));
      } else {
        const acc_t other = g.tile.at(entry.other, r);
        e = exp2_flushed(kIsB ? mixed_score(entry.w_other, other, entry.w_self, self, Fma())
                              : mixed_score(entry.w_self, self, entry.w_other, other, Fma()));
      }
      return e * fused_multiply_add(row.weight, beta, row.alpha);
    }
  };
  // The same for a repaired batch, whose tile holds logits: every score by the expression of the repair, from whose
  // results it is subtracted. An axis that is not asked for is left out: 0 times its exponential may be NaN.
  struct Repaired {
    __device__ __forceinline__ Repaired(const GradientTile&, int32_t) {}
    template <bool kIsB>
    __device__ __forceinline__ acc_t dz(const GradientTile& g, const RowOfGradient<acc_t>& row,
                                        const Entry<acc_t>& entry, acc_t beta) const {
      const Column<acc_t> column = g.plan.columns[entry.column];
      acc_t sum = 0;
      if (g.factors.class_axis) {
        const acc_t x = distance_score(g.tile, column, lane_row<kRows>(), row.offset);
        sum += exp2_flushed((x - row.shift) * g.sigma) * row.alpha;
      }
      if (g.factors.pair_axis && beta != acc_t(0)) {
        const acc_t y = distance_score(g.tile, column, lane_row<kRows>(), g.sums.offset[0]);
        sum += exp2_flushed((y - g.sums.shift[entry.column]) * g.sigma) * beta;
      }
      return sum;
    }
  };

  // Adds the entries [k, end) of a class in one role.
  template <bool kIsB, typename DScore>
  __device__ __forceinline__ acc_t add_entries(const DScore& dscore, const RowOfGradient<acc_t>& row,
                                               int32_t k, int32_t end, acc_t sum) const {
#pragma unroll 4
    for (; k < end; ++k) {
      const Entry<acc_t> entry = plan.entries[k];
      sum =
          fused_multiply_add(entry.w_self, dscore.template dz<kIsB>(*this, row, entry, factors.beta[k]), sum);
    }
    return sum;
  }

  template <typename DScore>
  __device__ __forceinline__ acc_t of_class(const RowOfGradient<acc_t>& row, int32_t slot) const {
    const DScore dscore(*this, slot);
    const int32_t first = plan.first[2 * slot], middle = plan.first[2 * slot + 1],
                  end = plan.first[2 * slot + 2];
    acc_t sum = add_entries<false>(dscore, row, first, middle, acc_t(0));
    sum = add_entries<true>(dscore, row, middle, end, sum);
    if (row.own.slot_a == slot) sum -= row.own.w_a * row.own_loss;
    if (row.own.slot_b == slot) sum -= row.own.w_b * row.own_loss;
    return sum;
  }

  // Writes the classes from slot0's to the next group's, those that no column uses as 0. `staging` holds dS of 32
  // slots, [row][33]. Adds dS * S to *dscale if that is not null.
  __device__ __forceinline__ void write(const GradientOutput& out, const acc_t* staging, int32_t slot0,
                                        int64_t row0, int valid, double* dscale) const {
    const int lane = lane_index();
    const int32_t slot = slot0 + lane, next = slot0 + kWarp;
    const int64_t begin = slot0 == 0 ? 0 : plan.present[slot0];
    const int64_t end = next < tile.used ? plan.present[next] : logits.classes;
    const bool has_slot = slot < tile.used;
    const int64_t c = has_slot ? plan.present[slot] : 0;
    const bool is_dense = end - begin == kWarp && next <= tile.used;
    for (int r = 0; r < valid; ++r) {
      const int64_t first = (row0 + r) * logits.classes;
      if (!is_dense) {
        for (int64_t k = begin + lane; k < end; k += kWarp) store_gradient(out, first + k, acc_t(0));
        sync_warp();
      }
      if (!has_slot) continue;
      const acc_t d = staging[r * (kWarp + 1) + lane];
      store_gradient(out, first + c, d * factors.multiplier);
      if (dscale != nullptr && d != acc_t(0))  // a class of zero gradient adds nothing, -inf included
        *dscale += double(d) * double(load_logit<acc_t>(
                                   logits, (row0 + r) * logits.row_stride + c * logits.class_stride));
    }
  }

  template <typename DScore>
  __device__ void run(const RowOfGradient<acc_t>& row, const GradientOutput& out, acc_t* staging,
                      int64_t row0, int valid, double* dscale) const {
    acc_t* own = staging + warp_index() * kRows * (kWarp + 1);
    for (int32_t slot0 = warp_index() * kWarp; slot0 < tile.used; slot0 += warp_count() * kWarp) {
#pragma unroll 1
      for (int step = 0; step < kRows; ++step) {
        const int k = step * tile.sides + lane_side<kRows>();
        own[lane_row<kRows>() * (kWarp + 1) + k] =
            slot0 + k < tile.used ? of_class<DScore>(row, slot0 + k) : acc_t(0);
      }
      sync_warp();
      write(out, own, slot0, row0, valid, dscale);
      sync_warp();
    }
  }
};

// Words of staging for a block.
ICM_HOST_DEVICE int64_t staging_size(int warps, int rows) { return int64_t(warps) * rows * (kWarp + 1); }

// The gradient of one tile, which holds T, or logits if the batch was repaired.
template <typename acc_t, int kRows, bool kFactored>
__device__ void gradient_of_tile(const Logits& logits, const Plan<acc_t>& plan, const RowSums<acc_t>& rows,
                                 const LogSum<acc_t>& sums, const GradientFactors<acc_t>& factors,
                                 const Tile<acc_t, kRows, kFactored>& tile, acc_t sigma, bool repaired,
                                 const GradientOutput& out, acc_t* staging, int64_t row0, int valid,
                                 double* dscale) {
  const int r = lane_row<kRows>() < valid ? lane_row<kRows>() : 0;
  const int64_t i = row0 + r;
  const RowOfGradient<acc_t> row{factors.alpha[i], factors.own_loss[i], rows.weight[i],
                                 rows.offset[i],   rows.shift[i],       plan.columns[logits.diagonal + i]};
  using Gradient = GradientTile<acc_t, kRows, kFactored>;
  const Gradient gradient{logits, plan, sums, factors, tile, sigma};
  if (repaired)
    gradient.template run<typename Gradient::Repaired>(row, out, staging, row0, valid, dscale);
  else
    gradient.template run<typename Gradient::Shared>(row, out, staging, row0, valid, dscale);
}

}  // namespace icm
