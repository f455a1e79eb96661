// What simt.h needs of the machine that runs the fibers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace icm {
namespace simt {

struct Position {
  unsigned x, y, z;
};

// Of the running thread. y and z stay 0 (positions) and 1 (sizes).
extern Position thread_position, block_position, block_size, grid_size;

enum class Error { kNone, kConfiguration, kSharedMemory, kCluster, kCooperative, kFault };
const char* error_string(Error error);

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that one block can have
  bool has_clusters;
};
DeviceLimits device_limits();
int resident_blocks(int threads, size_t shared_bytes);

struct Launch {
  int blocks;
  int threads;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;
};
// Runs `kernel` to its end in every thread; `run(call)` calls it.
Error launch(const Launch& how, const void* kernel, void (*run)(const void*), const void* call);

// A place in the source: as a default argument, that of the call. (clang has had std::source_location only since 16.)
struct Where {
  const char* file = "";
  int line = 0;
  const char* function = "";

  static constexpr Where current(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                                 const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }
};

// For the running thread.
void* shared_memory();
// Barrier of the block; whether the condition held in any of its threads.
bool sync_block(bool condition, const Where& where);
// Barrier of the warp; what each of its lanes brought. Valid until the thread's next call here.
const uint64_t* exchange(uint64_t bits, const Where& where);
void sync_cluster(const Where& where);
void sync_grid(const Where& where);
int cluster_rank();
int cluster_size();
// The same place in the shared memory of another block of the cluster.
void* shared_of(const void* pointer, int rank, const Where& where);
// Lets other threads go on now and then, as if this one had waited.
void maybe_yield();
[[noreturn]] void trap(const char* reason);

}  // namespace simt
}  // namespace icm
