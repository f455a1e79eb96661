// Which kernel of the loss runs for a size, with how many blocks and how much memory.
#pragma once

#include <algorithm>

#include "icm_loss_kernels.h"
#include "runtime.h"

namespace icm {

// Columns up to which every block reads the target for itself, which saves the launch of the plan.
inline constexpr int64_t kMostPlannedInside = 1024;
inline constexpr int64_t kMostClassesInside = 4096;
// Blocks of a portable cluster.
inline constexpr int kClusterBlocks = 8;

// How a pass is divided: rows in a tile, whether a tile fits in shared memory, whether the blocks are one cluster.
struct Division {
  int rows;
  bool in_shared;
  bool is_cluster;
};

// Calls body with the types of a division; a list of those that are compiled.
template <typename acc_t, typename Body>
void with_tile(const Division& division, const Body& body) {
  if constexpr (sizeof(acc_t) == 4) {
    if (division.rows == 32) return body(std::integral_constant<int, 32>(), std::true_type());
  }
  if (division.rows == 8) return body(std::integral_constant<int, 8>(), std::true_type());
  if (division.in_shared) return body(std::integral_constant<int, 2>(), std::true_type());
  return body(std::integral_constant<int, 2>(), std::false_type());
}

template <typename acc_t, int kRows, typename Group, bool kTileInShared>
size_t forward_shared_bytes(const ForwardRun& run, int64_t columns, int64_t classes) {
  Arena arena(nullptr);
  const int64_t tile_size = Tile<acc_t, kRows>::size(most_slots(columns, classes));
  Shared<acc_t, kRows>(arena, kTileInShared ? tile_size : 0, kThreads / kWarp, run.workers);
  SharedExtra<acc_t, kRows, Group>(arena, run, columns, classes, kThreads / kWarp);
  return arena.bytes();
}

template <typename acc_t, int kRows, bool kTileInShared>
size_t gradient_shared_bytes(int64_t columns, int64_t classes) {
  Arena arena(nullptr);
  const int64_t tile_size = Tile<acc_t, kRows>::size(most_slots(columns, classes));
  Shared<acc_t, kRows>(arena, kTileInShared ? tile_size : 0, kThreads / kWarp, 0);
  arena.take<acc_t>(staging_size(kThreads / kWarp, kRows));
  return arena.bytes();
}

// Rows in a tile: as many as keep all multiprocessors busy, fewer where shared memory is short. `bytes(division)` is
// the shared memory that a division needs.
template <typename acc_t, typename Bytes>
Division divide(int64_t rows, const DeviceLimits& limits, const Bytes& bytes) {
  Division smallest{2, true, false};
  for (const int tile_rows : {32, 8, 2}) {
    if (sizeof(acc_t) == 8 && tile_rows == 32) continue;
    const Division division{tile_rows, true, false};
    if (bytes(division) > size_t(limits.shared_bytes)) continue;
    smallest = division;
    if (4 * ((rows + tile_rows - 1) / tile_rows) >= 3 * int64_t(limits.multiprocessors)) return division;
  }
  if (bytes(smallest) > size_t(limits.shared_bytes)) smallest.in_shared = false;
  return smallest;
}

struct ForwardChoice {
  Division division;
  ForwardRun run;
  size_t shared_bytes;
  int blocks() const { return run.workers + 1; }
};

template <typename acc_t>
size_t shared_bytes_of(const Division& division, const ForwardRun& run, int64_t columns, int64_t classes) {
  size_t bytes = 0;
  with_tile<acc_t>(division, [&](auto tile_rows, auto in_shared) {
    constexpr int kRows = decltype(tile_rows)::value;
    constexpr bool kInShared = decltype(in_shared)::value;
    bytes = division.is_cluster
                ? forward_shared_bytes<acc_t, kRows, ClusterGroup, kInShared>(run, columns, classes)
                : forward_shared_bytes<acc_t, kRows, GridGroup, kInShared>(run, columns, classes);
  });
  return bytes;
}

template <typename acc_t>
ForwardChoice choose_forward(int64_t rows, int64_t columns, int64_t classes, const DeviceLimits& limits) {
  ForwardChoice choice{};
  choice.run.plans_inside = columns <= kMostPlannedInside && classes <= kMostClassesInside;
  const auto bytes_of = [&](const Division& division) {
    return shared_bytes_of<acc_t>(division, choice.run, columns, classes);
  };
  const auto settle = [&](const Division& division) {
    choice.division = division;
    choice.run.tiles = (rows + division.rows - 1) / division.rows;
    choice.run.workers = int(std::min<int64_t>(choice.run.tiles, std::max(1, limits.multiprocessors - 1)));
    choice.shared_bytes = bytes_of(division);
  };
  if constexpr (sizeof(acc_t) == 4) {
    settle({32, true, true});
    if (limits.has_clusters && choice.run.plans_inside && choice.blocks() <= kClusterBlocks &&
        choice.run.workers == choice.run.tiles && choice.shared_bytes <= size_t(limits.shared_bytes))
      return choice;
  }
  choice.run.workers = limits.multiprocessors;  // at most; a part of the shared memory grows with it
  settle(divide<acc_t>(rows, limits, bytes_of));
  return choice;
}

// Adds the gradient to a choice where one launch can give both: a tile for each worker, and room for it. The division
// stays, so the sums have the same bits with the gradient and without.
template <typename acc_t>
bool add_gradient(ForwardChoice& choice, int64_t columns, int64_t classes, const DeviceLimits& limits) {
  ForwardRun run = choice.run;
  run.with_gradient = true;
  const size_t bytes = shared_bytes_of<acc_t>(choice.division, run, columns, classes);
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
      device.launch(how, icm_loss_forward_kernel<acc_t, 32, ClusterGroup, true>, f, choice.run);
      return;
    }
  }
  how.cooperative = true;
  with_tile<acc_t>(choice.division, [&](auto tile_rows, auto in_shared) {
    device.launch(
        how,
        icm_loss_forward_kernel<acc_t, decltype(tile_rows)::value, GridGroup, decltype(in_shared)::value>, f,
        choice.run);
  });
}

template <typename acc_t>
struct BackwardChoice {
  Division division;
  size_t shared_bytes;
  int blocks;

  BackwardChoice(int64_t rows, int64_t columns, int64_t classes, const DeviceLimits& limits) {
    const auto bytes_of = [&](const Division& d) {
      size_t bytes = 0;
      with_tile<acc_t>(d, [&](auto tile_rows, auto in_shared) {
        bytes = gradient_shared_bytes<acc_t, decltype(tile_rows)::value, decltype(in_shared)::value>(columns,
                                                                                                     classes);
      });
      return bytes;
    };
    division = divide<acc_t>(rows, limits, bytes_of);
    shared_bytes = bytes_of(division);
    const int64_t tiles = (rows + division.rows - 1) / division.rows;
    blocks = int(std::min<int64_t>(tiles, limits.multiprocessors));
  }
};

template <typename acc_t>
void launch_backward(const DeviceScope& device, const Backward<acc_t>& b,
                     const BackwardChoice<acc_t>& choice) {
  device.launch({1, 1024, 33 * sizeof(acc_t)}, icm_loss_factors_kernel<acc_t>, b);
  with_tile<acc_t>(choice.division, [&](auto tile_rows, auto in_shared) {
    device.launch({choice.blocks, kThreads, choice.shared_bytes},
                  icm_loss_gradient_kernel<acc_t, decltype(tile_rows)::value, decltype(in_shared)::value>, b);
  });
  if (b.gradient_of_scale)
    device.launch({1, kWarp}, icm_loss_dscale_kernel<acc_t>, static_cast<const double*>(b.block_sums),
                  choice.blocks, b.dscale);
}

}  // namespace icm
