// Scratch memory and threads for the CPU operators.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace icm {

inline constexpr int64_t kCacheLine = 64;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One block of memory, handed out in cache-line-aligned pieces. Allocated before any thread starts, so
// that running out of memory is an ordinary exception on the calling thread.
class Workspace {
 public:
  template <typename T>
  void reserve(int64_t count, T** out) {
    requests_.push_back({reinterpret_cast<void**>(out), bytes_});
    bytes_ += round_up(int64_t(sizeof(T)) * std::max<int64_t>(count, 1), kCacheLine);
  }
  void allocate() {
    memory_ = static_cast<char*>(std::aligned_alloc(size_t(kCacheLine), size_t(bytes_)));
    if (memory_ == nullptr) throw std::bad_alloc();
    for (const Request& r : requests_) *r.out = memory_ + r.offset;
  }
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

 private:
  struct Request {
    void** out;
    int64_t offset;
  };
  std::vector<Request> requests_;
  int64_t bytes_ = 0;
  char* memory_ = nullptr;
};

// Elementary operations below which a second thread costs more than it saves. Untuned.
inline constexpr int64_t kSerialWork = int64_t(1) << 17;

inline int64_t thread_count(int64_t tasks, int64_t work) {
  if (work < kSerialWork || tasks < 2) return 1;
  return std::min<int64_t>(tasks, torch::stable::get_num_threads());
}

// Calls body(thread, begin, end) with tasks [0, tasks) cut into `threads` contiguous ranges. The body
// must not throw.
template <typename Body>
void parallel_ranges(int64_t threads, int64_t tasks, const Body& body) {
  const auto range = [&](int64_t t) { body(t, tasks * t / threads, tasks * (t + 1) / threads); };
  if (threads <= 1) {
    body(0, 0, tasks);
    return;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) range(t);
  });
}

}  // namespace icm
