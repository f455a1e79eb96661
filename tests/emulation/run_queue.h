// The threads that can go on, and who is next.
#pragma once

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>
#include <vector>

#include "threads.h"

namespace icm::simt {

class RunQueue {
 public:
  // Empty, for up to `most` threads. What kind of disorder follows is drawn here.
  void reset(size_t most, int block_threads, Random& random) {
    random_ = &random;
    block_threads_ = block_threads;
    places_.resize(std::bit_ceil(most));
    first_ = count_ = 0;
    disorder_ = static_cast<Disorder>(random.below(kDisorders));
  }

  // Threads side by side.
  void add(Thread* first, int count) {
    if (disorder_ == kRunAhead) {
      const int blocks = std::max(count / block_threads_, 1), warps = count / blocks / kLanes;
      const Tour block_tour(blocks, *random_), warp_tour(warps, *random_), lane_tour(kLanes, *random_);
      for (int b = 0; b < blocks; ++b)
        for (int w = 0; w < warps; ++w)
          for (int l = 0; l < kLanes; ++l)
            push(first + (int64_t(block_tour[b]) * warps + warp_tour[w]) * kLanes + lane_tour[l]);
    } else {
      const size_t begin = count_;
      for (int i = 0; i < count; ++i) {
        push(first + i);
        std::swap(place(count_ - 1), place(begin + random_->below(count_ - begin)));
      }
    }
  }

  // One that waits for the others' progress.
  void add_last(Thread* thread) {
    if (takes_newest()) {
      first_ = (first_ - 1) & (places_.size() - 1);
      ++count_;
      place(0) = thread;
    } else {
      push(thread);
    }
  }

  Thread* take() {
    if (count_ == 0) return nullptr;
    if (disorder_ == kInTurn) {
      Thread* const thread = place(0);
      ++first_;
      --count_;
      return thread;
    }
    if (disorder_ == kAnyNext) std::swap(place(count_ - 1), place(random_->below(count_)));
    return place(--count_);
  }

 private:
  enum Disorder {
    kRunAhead,  // one block goes on as far as it can, in it one warp, in it one thread
    kNewest,    // the threads released last, in any order
    kInTurn,    // all make the same progress
    kAnyNext,
    kDisorders
  };

  // Every number below `count` once, from anywhere and with any step.
  class Tour {
   public:
    Tour(int count, Random& random) : count_(count), start_(int(random.below(size_t(count)))) {
      do step_ = 1 + int(random.below(size_t(count)));
      while (std::gcd(step_, count) != 1);
    }
    int operator[](int i) const { return int((start_ + int64_t(i) * step_) % count_); }

   private:
    int count_, start_, step_;
  };

  bool takes_newest() const { return disorder_ == kRunAhead || disorder_ == kNewest; }
  Thread*& place(size_t i) { return places_[(first_ + i) & (places_.size() - 1)]; }
  void push(Thread* thread) { place(count_++) = thread; }

  Random* random_ = nullptr;
  int block_threads_ = 0;
  std::vector<Thread*> places_;
  size_t first_ = 0, count_ = 0;
  Disorder disorder_ = kAnyNext;
};

}  // namespace icm::simt
