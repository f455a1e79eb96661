// The gradient of a tile of rows: its classes divided among the warps, staged, and written in whole rows.
#pragma once

#include "class_sums.h"

namespace icm {

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

// Entries of a class, of both roles, that a lane adds up at least before others help it. A guess.
inline constexpr int kLeastShare = 8;

// How the classes and their entries are divided. Sides of a warp that work together on one class (1 << together of
// them) wait less for each other than on classes of their own, if these are long. Where there are fewer groups of 32
// classes than warps, several warps share a group: each takes classes of its own, or if they are long a part of each.
struct Split {
  int together = 0, parts = 1;
  bool of_entries;
  __device__ __forceinline__ Split(int32_t used, int32_t entries, int sides) {
    const int groups = (used + kWarp - 1) / kWarp;
    while (2 * parts * groups <= warp_count()) parts *= 2;
    const auto are_long = [&](int shares) { return int64_t(used) * shares * kLeastShare <= entries; };
    of_entries = are_long(parts);
    while ((2 << together) <= sides && are_long((of_entries ? parts : 1) * (2 << together))) ++together;
  }
};

template <typename TileType>
struct GradientTile {
  using acc_t = typename TileType::acc;
  using Rows = typename TileType::PerRowOfLane;
  static constexpr int kPack = TileType::pack;

  const Logits& logits;
  const Plan<acc_t>& plan;
  const GradientFactors<acc_t>& factors;
  const TileType& tile;
  const ClassSums<TileType> classes;

  // What the target subtracts: from the classes of each row's own column. Lanes take a row each.
  __device__ __forceinline__ void subtract_target(acc_t* staging, int32_t slot0, int64_t row0,
                                                  int valid) const {
    if (lane_index() >= valid) return;
    const int64_t i = row0 + lane_index();
    const Column<acc_t> own = plan.columns[logits.diagonal + i];
    acc_t* row = staging + lane_index() * (kWarp + 1) - slot0;
    if (own.slot_a >= slot0 && own.slot_a < slot0 + kWarp) row[own.slot_a] -= own.w_a * factors.own_loss[i];
    if (own.slot_b >= slot0 && own.slot_b < slot0 + kWarp) row[own.slot_b] -= own.w_b * factors.own_loss[i];
  }

  // Writes the classes from slot0's to the next group's, those that no column uses as 0: every step-th row from
  // `first` on. `staging` holds dS of 32 slots, [row][33]. Adds dS * S to *dscale if that is not null.
  __device__ __forceinline__ void write(const GradientOutput& out, const acc_t* staging, int32_t slot0,
                                        int64_t row0, int first_row, int step, int valid,
                                        double* dscale) const {
    const int lane = lane_index();
    const int32_t slot = slot0 + lane, next = slot0 + kWarp;
    const int64_t begin = slot0 == 0 ? 0 : plan.present[slot0];
    const int64_t end = next < tile.used ? plan.present[next] : logits.classes;
    const bool has_slot = slot < tile.used;
    const int64_t c = has_slot ? plan.present[slot] : 0;
    const bool is_dense = end - begin == kWarp && next <= tile.used;
    for (int r = first_row; r < valid; r += step) {
      const int64_t first = (row0 + r) * logits.classes;
      if (!is_dense) {
        for (int64_t k = begin + lane; k < end; k += kWarp) store_gradient(out, first + k, acc_t(0));
        sync_warp();
      }
      if (!has_slot) continue;
      const acc_t d = staging[r * (kWarp + 1) + lane];
      store_gradient(out, first + c, d * factors.unit * factors.scale);
      if (dscale != nullptr && d != acc_t(0))  // a class of zero gradient adds nothing, -inf included
        *dscale += double(d) * double(load_logit<acc_t>(
                                   logits, (row0 + r) * logits.row_stride + c * logits.class_stride));
    }
  }

  // Fills staging with the sums of 32 slots: of some of them, or with a part of all.
  template <typename Terms>
  __device__ __forceinline__ void add_up(const LaneOfGradient<TileType>& rows, const Split& split,
                                         acc_t* staging, int32_t slot0, int part) const {
    const int at_once = TileType::sides >> split.together, group = lane_side<TileType>() >> split.together;
    const int side_of_group = lane_side<TileType>() - (group << split.together);
    const int share = split.of_entries ? (part << split.together) + side_of_group : side_of_group,
              shares = (split.of_entries ? split.parts : 1) << split.together;
    const int first = split.of_entries ? 0 : part * at_once,
              step = split.of_entries ? at_once : at_once * split.parts;
#pragma unroll 1
    for (int k0 = first; k0 < kWarp; k0 += step) {
      const int k = k0 + group;
      Rows sum = for_rows<TileType>([](int) { return acc_t(0); });
      if (slot0 + k < tile.used) sum = classes.template of_class<Terms>(rows, slot0 + k, share, shares);
#pragma unroll
      for (int p = 0; p < kPack; ++p) {
        for (int width = TileType::lanes; width < TileType::lanes << split.together; width *= 2)
          sum.of[p] += shuffle_xor(sum.of[p], width);
        if (side_of_group == 0) staging[(lane_row<TileType>() * kPack + p) * (kWarp + 1) + k] = sum.of[p];
      }
    }
    sync_warp();
  }

  template <typename Terms>
  __device__ void run(const LaneOfGradient<TileType>& rows, const GradientOutput& out, acc_t* staging,
                      int64_t row0, int valid, double* dscale) const {
    constexpr int kStaging = TileType::rows * (kWarp + 1);
    const Split split(tile.used, classes.last + 1, TileType::sides);
    const int warps = warp_count(), warp = warp_index();
    const int at_once = warps / split.parts, part = warp / at_once;
    for (int group0 = 0; group0 * kWarp < tile.used; group0 += at_once) {
      const int32_t slot0 = (group0 + warp % at_once) * kWarp;
      const bool takes_part = part < split.parts && slot0 < tile.used;
      acc_t* own = staging + warp % at_once * kStaging;  // of the group
      if (takes_part)
        add_up<Terms>(rows, split, split.of_entries ? staging + warp * kStaging : own, slot0, part);
      if (split.parts > 1) sync_block();
      if (split.parts > 1 && split.of_entries) {
        for (int r = part; r < valid && takes_part; r += split.parts) {
          acc_t* sum = own + r * (kWarp + 1) + lane_index();
          for (int q = 1; q < split.parts; ++q) *sum += sum[q * at_once * kStaging];
        }
        sync_block();
      }
      if (takes_part && part == 0) subtract_target(own, slot0, row0, valid);
      if (split.parts > 1)
        sync_block();
      else
        sync_warp();
      if (takes_part) write(out, own, slot0, row0, part, split.parts, valid, dscale);
      sync_warp();  // before the next group; where several warps share one, there is no other
    }
  }
};

// Words of staging for a block.
ICM_HOST_DEVICE int64_t staging_size(int warps, int rows) { return int64_t(warps) * rows * (kWarp + 1); }

// The gradient of one tile, which holds T, or logits if the batch was repaired.
template <typename TileType>
__device__ void gradient_of_tile(const Logits& logits, const Plan<typename TileType::acc>& plan,
                                 const RowSums<typename TileType::acc>& rows,
                                 const LogSum<typename TileType::acc>& sums,
                                 const GradientFactors<typename TileType::acc>& factors, const TileType& tile,
                                 typename TileType::acc sigma, bool repaired, const GradientOutput& out,
                                 typename TileType::acc* staging, int64_t row0, int valid, double* dscale) {
  const auto of = [&](const typename TileType::acc* values) {
    return for_rows<TileType>([&](int row) { return values[row0 + (row < valid ? row : 0)]; });
  };
  const LaneOfGradient<TileType> lane{of(factors.alpha), of(rows.weight), of(rows.offset), of(rows.shift)};
  using Classes = ClassSums<TileType>;
  const Classes classes{plan, sums, factors, tile, sigma, plan.first[2 * tile.used] - 1};
  const GradientTile<TileType> gradient{logits, plan, factors, tile, classes};
  if (repaired)
    gradient.template run<typename Classes::Repaired>(lane, out, staging, row0, valid, dscale);
  else
    gradient.template run<typename Classes::Shared>(lane, out, staging, row0, valid, dscale);
}

}  // namespace icm
