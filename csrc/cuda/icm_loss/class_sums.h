// Gradient with respect to the logits, class by class:
//
//   dZ[i,j] = g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own])           P = e alpha_i,  Q = e w_i beta_j
//   dS[i,c] = sum_j dZ[i,j] Y[j,c]
//
// Lanes own a class and its rows and add up that class's columns in the order of the plan, so nothing is scattered: no
// atomics, one order. The price is a second exponential for a column with two classes, since both of its classes form
// it. Here are the sums without what each image's own column subtracts.
#pragma once

#include "sums.h"

namespace icm {

// Factors of the gradient: alpha and beta hold the incoming gradient divided by the sums, own_loss what the target
// subtracts; the logits' gradient is theirs times `unit`, then times `scale`: their product may overflow.
template <typename acc_t>
struct GradientFactors {
  const acc_t *alpha, *own_loss;  // (rows,)
  const acc_t* beta;              // of each entry of the plan: that of its column
  acc_t unit, scale;
  bool class_axis, pair_axis;
};

// What one lane knows of its rows.
template <typename TileType>
struct LaneOfGradient {
  typename TileType::PerRowOfLane alpha, weight;
  typename TileType::PerRowOfLane offset, shift;  // of a repaired batch; the offset of a raw tile too
};

template <typename TileType>
struct ClassSums {
  using acc_t = typename TileType::acc;
  using Rows = typename TileType::PerRowOfLane;
  static constexpr int kPack = TileType::pack;

  const Plan<acc_t>& plan;
  const LogSum<acc_t>& sums;
  const GradientFactors<acc_t>& factors;
  const TileType& tile;
  acc_t sigma;
  int32_t last;  // of the entries

  // An entry, its beta and its place, read ahead of its use.
  struct Fetched {
    Entry<acc_t> entry;
    acc_t beta;
    int32_t at;
  };
  __device__ __forceinline__ Fetched fetch(int32_t k) const {
    const int32_t at = k < last ? k : last;
    return {plan.entries[at], factors.beta[at], at};
  }

  // Sums over the columns of a class, of exponentials times weights: what is multiplied by the row's alpha, and what
  // by its weight in the columns' sums.
  struct Sums {
    Rows by_row, by_column;
  };

  // Adds the columns of a class, as if this lane's rows owned none of them, for a tile of T or of factors.
  struct Shared {
    LaneScores<TileType> scores;
    Rows self, self_as_b;

    __device__ __forceinline__ Shared(const ClassSums& of, const LaneOfGradient<TileType>& rows, int32_t slot)
        : scores(of.tile, rows.offset, of.sigma), self(scores[slot]), self_as_b() {
      if constexpr (TileType::factored) self_as_b = scores[of.tile.as_partner(slot)];
    }
    // The score by the expression of the sums, whichever class is self: a rounding apart, float64 would lose digits.
    template <bool kIsB>
    __device__ __forceinline__ void add(const ClassSums& of, const LaneOfGradient<TileType>&,
                                        const Fetched& fetched, Sums& sums) const {
      const acc_t w_a = fetched.entry.w_a, w_b = partner_weight(w_a), w_self = kIsB ? w_b : w_a;
      const int32_t other = int32_t(fetched.entry.other);
      Rows e;
      if constexpr (!TileType::factored)
        e = kIsB ? scores.exponential(w_a, scores[other], w_b, self)
                 : scores.exponential(w_a, self, w_b, scores[other]);
      else if constexpr (kIsB)
        e = scores.product(scores[other], self_as_b);
      else
        e = scores.product(self, w_b == acc_t(0) ? self_as_b : scores[of.tile.as_partner(other)]);
      const acc_t weighted_beta = w_self * fetched.beta;
#pragma unroll
      for (int p = 0; p < kPack; ++p) {
        sums.by_row.of[p] = fused_multiply_add(w_self, e.of[p], sums.by_row.of[p]);
        sums.by_column.of[p] = fused_multiply_add(weighted_beta, e.of[p], sums.by_column.of[p]);
      }
    }
    __device__ __forceinline__ static acc_t total(acc_t by_row, acc_t alpha, acc_t by_column, acc_t weight) {
      return fused_multiply_add(by_row, alpha, by_column * weight);
    }
  };
  // The same for a repaired batch, whose tile holds logits: every score by the expression of the repair, from whose
  // results it is subtracted. An axis that is not asked for is left out: 0 times its exponential may be NaN.
  struct Repaired {
    __device__ __forceinline__ Repaired(const ClassSums&, const LaneOfGradient<TileType>&, int32_t) {}
    template <bool kIsB>
    __device__ __forceinline__ void add(const ClassSums& of, const LaneOfGradient<TileType>& rows,
                                        const Fetched& fetched, Sums& sums) const {
      const int32_t j = of.plan.owners[fetched.at];
      const Column<acc_t> column = of.plan.columns[j];
      const acc_t w_self = kIsB ? column.w_b : column.w_a;
#pragma unroll
      for (int p = 0; p < kPack; ++p) {
        const int row = lane_row<TileType>() * kPack + p;
        if (of.factors.class_axis) {
          const acc_t x = distance_score(of.tile, column, row, rows.offset.of[p]);
          sums.by_row.of[p] += exp2_flushed((x - rows.shift.of[p]) * of.sigma) * w_self;
        }
        if (of.factors.pair_axis && fetched.beta != acc_t(0)) {
          const acc_t y = distance_score(of.tile, column, row, of.sums.offset[0]);
          sums.by_column.of[p] += exp2_flushed((y - of.sums.shift[j]) * of.sigma) * (w_self * fetched.beta);
        }
      }
    }
    __device__ __forceinline__ static acc_t total(acc_t by_row, acc_t alpha, acc_t by_column, acc_t) {
      return fused_multiply_add(by_row, alpha, by_column);
    }
  };

  // Adds every step-th of the entries [k, end) of a class in one role, of which the first has been fetched.
  template <bool kIsB, typename Terms>
  __device__ __forceinline__ void add_entries(const Terms& terms, const LaneOfGradient<TileType>& rows,
                                              Fetched next, int32_t k, int32_t end, int32_t step,
                                              Sums& sums) const {
#pragma unroll 1  // unrolled, the compiler moves a fetch to its use
    for (; k < end; k += step) {
      const Fetched fetched = next;
      next = fetch(k + step);
      terms.template add<kIsB>(*this, rows, fetched, sums);
    }
  }

  // This lane's share of a class's gradient.
  template <typename Terms>
  __device__ __forceinline__ Rows of_class(const LaneOfGradient<TileType>& rows, int32_t slot, int32_t share,
                                           int32_t shares) const {
    const int32_t first = plan.first[2 * slot], middle = plan.first[2 * slot + 1],
                  end = plan.first[2 * slot + 2];
    const Fetched as_a = fetch(first + share), as_b = fetch(middle + share);
    const Terms terms(*this, rows, slot);
    const Rows zero = for_rows<TileType>([](int) { return acc_t(0); });
    Sums sums{zero, zero};
    add_entries<false>(terms, rows, as_a, first + share, middle, shares, sums);
    add_entries<true>(terms, rows, as_b, middle + share, end, shares, sums);
    Rows result;
#pragma unroll
    for (int p = 0; p < kPack; ++p)
      result.of[p] =
          Terms::total(sums.by_row.of[p], rows.alpha.of[p], sums.by_column.of[p], rows.weight.of[p]);
    return result;
  }
};

}  // namespace icm
