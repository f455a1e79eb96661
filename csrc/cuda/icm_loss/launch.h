// Which kernel of the loss runs for a size, with how many blocks and how much memory.
#pragma once

#include <algorithm>
#include <limits>

#include "../runtime.h"
#include "kernels.h"

namespace icm {

// Columns up to which every block reads the target for itself, which saves the launch of the plan.
inline constexpr int64_t kMostPlannedInside = 1024;
inline constexpr int64_t kMostClassesInside = 4096;

// Columns from which the exponentials of a batch with one lam are factored.
inline constexpr int64_t kLeastFactored = 1025;

// How a pass is divided: rows in a tile, whether the tile fits in shared memory, whether the blocks are one cluster,
// whether the tile holds factors, or logits of 16 bits as they came.
struct Division {
  int rows;
  bool in_shared, is_cluster, factored, raw;
};

template <typename TileType, bool kInShared>
struct TileChoice {
  using Tile = TileType;
  static constexpr bool in_shared = kInShared;
};

// Calls body with the types of a division; the list of those that are compiled.
template <typename acc_t, typename Body>
void with_tile(const Division& division, LogitType type, const Body& body) {
  if constexpr (sizeof(acc_t) == 4) {
    const auto raw = [&](auto stored) {
      using stored_t = decltype(stored);
      if (division.rows == 8) return body(TileChoice<Tile<acc_t, 8, false, stored_t>, true>());
      return body(TileChoice<Tile<acc_t, 4, false, stored_t>, true>());
    };
    if (division.raw && type == LogitType::kBFloat16) return raw(bfloat16());
    if (division.raw) return raw(float16());
    if (division.factored) return body(TileChoice<Tile<acc_t, 32, true>, true>());
    if (division.rows == 32) return body(TileChoice<Tile<acc_t, 32>, true>());
  }
  if (division.rows == 8) return body(TileChoice<Tile<acc_t, 8>, true>());
  if (division.in_shared) return body(TileChoice<Tile<acc_t, 2>, true>());
  return body(TileChoice<Tile<acc_t, 2>, false>());
}

template <typename Choice, typename Group>
size_t forward_shared_bytes(const ForwardRun& run, int64_t columns, int64_t classes) {
  using TileType = typename Choice::Tile;
  Arena arena(nullptr);
  const int64_t tile_size = Choice::in_shared ? TileType::size(most_slots(columns, classes)) : 0;
  Shared<TileType>(arena, tile_size, kThreads / kWarp, run.workers);
  SharedExtra<TileType, Group>(arena, run, columns, classes, kThreads / kWarp);
  return arena.bytes();
}

template <typename Choice>
size_t gradient_shared_bytes(int64_t columns, int64_t classes) {
  using TileType = typename Choice::Tile;
  Arena arena(nullptr);
  const int64_t tile_size = Choice::in_shared ? TileType::size(most_slots(columns, classes)) : 0;
  Shared<TileType>(arena, tile_size, kThreads / kWarp, 0);
  arena.take<typename TileType::acc>(staging_size(kThreads / kWarp, TileType::rows));
  return arena.bytes();
}

// What a tile costs, in units of a row of 32 that are worked on at once. Estimates, no GPU has been asked: instructions,
// exponentials and wavefronts of shared memory of both passes' inner loops, counted in the code for sm_90. Fewer rows
// make a lane's neighbours take other classes, whose words share banks; and whatever a column costs beside its rows,
// some 24 bytes through the second-level cache, is shared by fewer. Factors take no exponential per column, but the
// loop is bound by shared memory about as much: tiles of 16 rows, for twice the classes, would cost more than 1.
struct TileCost {
  Division division;
  double per_row, fixed;
};
inline constexpr TileCost kTileCosts[] = {
    {{32, true, false, false, false}, 1.0, 6.0}, {{8, true, false, false, false}, 1.7, 6.0},
    {{2, true, false, false, false}, 4.6, 6.0},  {{32, true, false, true, false}, 0.8, 7.0},
    {{8, true, false, false, true}, 1.5, 6.0},   {{4, true, false, false, true}, 2.3, 6.0},
};

// What decides on a division.
struct Problem {
  int64_t rows, columns, classes;
  LogitType type;
  bool one_lam;
  bool is_16_bit() const { return type == LogitType::kBFloat16 || type == LogitType::kFloat16; }
  // Below some columns the exponentials are not what takes the time.
  bool is_factored() const { return one_lam && columns >= kLeastFactored; }
};

// The division that is done first, of those that fit. `bytes(division)` is the shared memory that one needs.
template <typename acc_t, typename Bytes>
Division divide(const Problem& problem, const DeviceLimits& limits, const Bytes& bytes) {
  Division best{2, false, false, false, false};
  double least = std::numeric_limits<double>::infinity();
  for (const TileCost& cost : kTileCosts) {
    const int tile_rows = cost.division.rows;
    if (sizeof(acc_t) == 8 && tile_rows == 32) continue;
    if ((cost.division.factored && !problem.is_factored()) || (cost.division.raw && !problem.is_16_bit()))
      continue;
    if (bytes(cost.division) > size_t(limits.shared_bytes)) continue;
    const int64_t tiles = (problem.rows + tile_rows - 1) / tile_rows,
                  workers = std::max(1, limits.multiprocessors - 1);
    const double time = double((tiles + workers - 1) / workers) * (tile_rows * cost.per_row + cost.fixed);
    if (time < least) {
      least = time;
      best = cost.division;
    }
  }
  return best;
}

struct ForwardChoice {
  Division division;
  ForwardRun run;
  size_t shared_bytes;
  int blocks() const { return run.workers + 1; }
};

template <typename acc_t>
size_t shared_bytes_of(const Division& division, const ForwardRun& run, const Problem& problem) {
  size_t bytes = 0;
  with_tile<acc_t>(division, problem.type, [&](auto tile) {
    using Choice = decltype(tile);
    bytes = division.is_cluster
                ? forward_shared_bytes<Choice, ClusterGroup>(run, problem.columns, problem.classes)
                : forward_shared_bytes<Choice, GridGroup>(run, problem.columns, problem.classes);
  });
  return bytes;
}

template <typename acc_t>
ForwardChoice choose_forward(const Problem& problem, const DeviceScope& device) {
  const DeviceLimits limits = device.limits();
  ForwardChoice choice{};
  choice.run.plans_inside = problem.columns <= kMostPlannedInside && problem.classes <= kMostClassesInside;
  const auto bytes_of = [&](const Division& division) {
    return shared_bytes_of<acc_t>(division, choice.run, problem);
  };
  const auto settle = [&](const Division& division) {
    choice.division = division;
    choice.run.tiles = (problem.rows + division.rows - 1) / division.rows;
    choice.run.workers = int(std::min<int64_t>(choice.run.tiles, std::max(1, limits.multiprocessors - 1)));
    choice.shared_bytes = bytes_of(division);
  };
  if constexpr (sizeof(acc_t) == 4) {
    static PerDevice<int> clusters;
    settle({32, true, true, false, false});
    if (choice.run.plans_inside && choice.blocks() <= kLargestCluster &&
        choice.run.workers == choice.run.tiles && choice.shared_bytes <= size_t(limits.shared_bytes) &&
        choice.blocks() <= largest_cluster(clusters, device, kThreads, size_t(limits.shared_bytes),
                                           icm_loss_forward_kernel<Tile<float, 32>, ClusterGroup, true>))
      return choice;
  }
  choice.run.workers = limits.multiprocessors;  // at most; a part of the shared memory grows with it
  settle(divide<acc_t>(problem, limits, bytes_of));
  if (choice.run.plans_inside && choice.shared_bytes > size_t(limits.shared_bytes)) {
    choice.run.plans_inside = false;
    choice.run.workers = limits.multiprocessors;
    settle(divide<acc_t>(problem, limits, bytes_of));
  }
  return choice;
}

// Adds the gradient to a choice where one launch can give both: a tile for each worker, and room for it. The division
// stays, so the sums have the same bits with the gradient and without.
template <typename acc_t>
bool add_gradient(ForwardChoice& choice, const Problem& problem, const DeviceLimits& limits) {
  ForwardRun run = choice.run;
  run.with_gradient = true;
  const size_t bytes = shared_bytes_of<acc_t>(choice.division, run, problem);
  if (!run.plans_inside || run.tiles != run.workers || !choice.division.in_shared ||
      bytes > size_t(limits.shared_bytes))
    return false;
  choice.run = run;
  choice.shared_bytes = bytes;
  return true;
}

template <typename acc_t>
void launch_forward(const DeviceScope& device, const Forward<acc_t>& f, const ForwardChoice& choice) {
  if (!choice.run.plans_inside)
    device.launch({1, 1024, kPrefixScratch * sizeof(int32_t)}, icm_loss_plan_kernel<acc_t>, f.labels,
                  f.logits.classes, f.plan, f.scratch.slot_of);
  Launch how{choice.blocks(), kThreads, choice.shared_bytes};
  if constexpr (sizeof(acc_t) == 4) {
    if (choice.division.is_cluster) {
      how.cluster = choice.blocks();
      device.launch(how, icm_loss_forward_kernel<Tile<acc_t, 32>, ClusterGroup, true>, f, choice.run);
      return;
    }
  }
  how.cooperative = true;
  with_tile<acc_t>(choice.division, f.logits.type, [&](auto tile) {
    using Choice = decltype(tile);
    device.launch(how, icm_loss_forward_kernel<typename Choice::Tile, GridGroup, Choice::in_shared>, f,
                  choice.run);
  });
}

struct BackwardChoice {
  Division division;
  size_t shared_bytes;
  int blocks;
};

template <typename acc_t>
BackwardChoice choose_backward(const Problem& problem, const DeviceLimits& limits) {
  const auto bytes_of = [&](const Division& division) {
    size_t bytes = 0;
    with_tile<acc_t>(division, problem.type, [&](auto tile) {
      bytes = gradient_shared_bytes<decltype(tile)>(problem.columns, problem.classes);
    });
    return bytes;
  };
  const Division division = divide<acc_t>(problem, limits, bytes_of);
  const int64_t tiles = (problem.rows + division.rows - 1) / division.rows;
  return {division, bytes_of(division), int(std::min<int64_t>(tiles, limits.multiprocessors))};
}

template <typename acc_t>
void launch_backward(const DeviceScope& device, const Backward<acc_t>& b, const BackwardChoice& choice) {
  const int64_t factor_blocks = (2 * b.columns + kFactorThreads - 1) / kFactorThreads;
  device.launch({int(std::min<int64_t>(factor_blocks, 1024)), kFactorThreads,
                 (kFactorThreads / kWarp + 1) * sizeof(acc_t)},
                icm_loss_factors_kernel<acc_t>, b);
  with_tile<acc_t>(choice.division, b.logits.type, [&](auto tile) {
    using Choice = decltype(tile);
    device.launch({choice.blocks, kThreads, choice.shared_bytes},
                  icm_loss_gradient_kernel<typename Choice::Tile, Choice::in_shared>, b);
  });
  if (b.gradient_of_scale)
    device.launch({1, kWarp}, icm_loss_dscale_kernel<acc_t>, static_cast<const double*>(b.block_sums),
                  choice.blocks, b.dscale);
}

}  // namespace icm
