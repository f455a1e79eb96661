// What the scheduler knows of threads, and of the barriers at which they wait.
#pragma once

#include "device_model.h"
#include "fibers.h"

namespace icm::simt {

struct Thread;
struct Cluster;

struct Barrier {
  const char* group = "";
  Thread* first = nullptr;  // its threads lie side by side
  int count = 0;
  int arrived = 0;
  unsigned generation = 0;
  Where where{};  // of those that have arrived
};

struct Warp {
  Barrier barrier;
  uint64_t values[2][kLanes];
};

struct Block {
  int index;
  void* shared;
  Barrier barrier;
  bool any[2];
  int running;
  bool started;
  Cluster* cluster;
};

struct Cluster {
  Barrier barrier;
  Block* first;
};

struct Thread {
  Context context;
  Stack* stack = nullptr;  // null: not started, or ended
  Warp* warp;
  Block* block;
  int index;
  const Barrier* waits_for;
  Where where;
  bool has_exited;
};

}  // namespace icm::simt
