// The emulated device: what it has, and whether a launch fits.
#include "device_model.h"

#include <algorithm>
#include <cstdlib>

namespace icm::simt {
namespace {

// Of compute capability 9.0 where a multiprocessor has no other limit.
constexpr int kMostThreads = 1024, kThreadsOfMultiprocessor = 2048, kBlocksOfMultiprocessor = 32;
constexpr int kReservedShared = 1024;  // of each block, by the system
constexpr int kMostCluster = 16;       // where a kernel asks for more than the portable 8

long long environment(const char* name, long long otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::atoll(text);
}

DeviceLimits limits_from_environment() {
  return {int(environment("ICM_SIMT_MULTIPROCESSORS", 4)),
          int(environment("ICM_SIMT_SHARED_BYTES", 227 * 1024)), environment("ICM_SIMT_CLUSTERS", 1) != 0};
}

DeviceLimits& limits() {
  static DeviceLimits limits = limits_from_environment();
  return limits;
}

Random& random_order() {
  static Random random(uint64_t(environment("ICM_SIMT_SEED", 0)));
  return random;
}

}  // namespace

Random& random_numbers() { return random_order(); }
DeviceLimits device_limits() { return limits(); }

// Registers are not modelled: on a device a kernel that uses many has fewer blocks.
int resident_blocks(int threads, size_t shared_bytes) {
  const DeviceLimits have = limits();
  if (threads < 1 || threads > kMostThreads || shared_bytes > size_t(have.shared_bytes)) return 0;
  const int by_shared = (have.shared_bytes + kReservedShared) / (int(shared_bytes) + kReservedShared);
  return std::min({kThreadsOfMultiprocessor / threads, by_shared, kBlocksOfMultiprocessor});
}

Error check_launch(const Launch& how) {
  const DeviceLimits have = limits();
  if (how.blocks < 1 || how.threads < 1 || how.threads > kMostThreads || how.threads % kLanes != 0 ||
      how.cluster < 1 || how.blocks % how.cluster != 0)
    return Error::kConfiguration;
  if (how.shared_bytes > size_t(have.shared_bytes)) return Error::kSharedMemory;
  if (how.cluster > 1 && (!have.has_clusters || how.cluster > kMostCluster)) return Error::kCluster;
  const int64_t resident = int64_t(resident_blocks(how.threads, how.shared_bytes)) * have.multiprocessors;
  if (how.cooperative && how.blocks > resident) return Error::kCooperative;
  return Error::kNone;
}

}  // namespace icm::simt

extern "C" {
__attribute__((visibility("default"))) void icm_simt_set_seed(uint64_t seed) {
  icm::simt::random_order() = icm::simt::Random(seed);
}
// -1: as the environment says.
__attribute__((visibility("default"))) void icm_simt_set_device(int multiprocessors, int shared_bytes,
                                                                int has_clusters) {
  icm::simt::DeviceLimits limits = icm::simt::limits_from_environment();
  if (multiprocessors >= 0) limits.multiprocessors = multiprocessors;
  if (shared_bytes >= 0) limits.shared_bytes = shared_bytes;
  if (has_clusters >= 0) limits.has_clusters = has_clusters != 0;
  icm::simt::limits() = limits;
}
}
