// Runs the threads of a launch, one at a time. A thread goes on until it must wait; then another one, drawn at random,
// does. Blocks that can wait for each other are there at once: those of a cluster, or of a cooperative launch. Else
// block follows block, in random order.
#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "device_model.h"
#include "fibers.h"
#include "report.h"
#include "run_queue.h"
#include "threads.h"

namespace icm::simt {

Position thread_position{0, 0, 0}, block_position{0, 0, 0}, block_size{1, 1, 1}, grid_size{1, 1, 1};

namespace {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

struct Machine {
  Launch how;
  const void* kernel;
  void (*run)(const void*);
  const void* call;
  std::vector<Thread> threads;  // of the blocks that are there now
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  Barrier grid_barrier;
  std::vector<std::unique_ptr<void, FreeMemory>> shared;
  RunQueue queue;
  Thread* current = nullptr;  // null: the host
  Context host;
  int exited = 0;
  std::string fault;
  int launches = 0;
};

Machine machine;

void start_thread();

// The thread that goes on next, made current; null when none can.
Thread* choose_next() {
  Thread* const next = machine.queue.take();
  if (next == nullptr) return nullptr;
  machine.current = next;
  thread_position.x = unsigned(next->index);
  block_position.x = unsigned(next->block->index);
  return next;
}

Context* context_of(Thread* thread) {
  if (thread->stack == nullptr) {
    thread->stack = take_stack();
    prepare(&thread->context, thread->stack, start_thread);
  }
  return &thread->context;
}

// Leaves the running thread, which is in the queue, waits for a barrier that will put it there, or is lost.
void suspend() {
  Thread* const self = machine.current;
  Thread* const next = choose_next();
  if (next == self) return;
  switch_context(&self->context, next == nullptr ? &machine.host : context_of(next));
}

[[noreturn]] void fault(const std::string& what) {
  machine.fault = what;
  Context* const self = &machine.current->context;
  switch_context(self, &machine.host, true);
  std::abort();
}

void fill_shared(const Block& block) {
  if (machine.how.shared_bytes > 0) std::memset(block.shared, 0xff, machine.how.shared_bytes);
}

void run_thread(Thread* self) {
  Block& block = *self->block;
  if (!block.started) {
    block.started = true;
    fill_shared(block);
  }
  machine.run(machine.call);
  ++machine.exited;
  self->has_exited = true;
  // Nobody may use the shared memory of a block that has ended.
  if (--block.running == 0) fill_shared(block);
}

// A thread that has not started yet takes the stack of one that ends.
void start_thread() {
  Thread* self = machine.current;
  finish_switch(&self->context);
  for (;;) {
    run_thread(self);
    Thread* const next = choose_next();
    Stack* const stack = self->stack;
    Context* const left = &self->context;
    if (next == nullptr || next->stack != nullptr) {
      give_back(stack);
      self->stack = nullptr;
      switch_context(left, next == nullptr ? &machine.host : &next->context, true);
      std::abort();
    }
    self->stack = nullptr;
    next->stack = stack;
    next->context.low = left->low;
    next->context.bytes = left->bytes;
    self = next;
  }
}

void wait(Barrier& barrier, const Where& where) {
  Thread* const self = machine.current;
  if (barrier.arrived == 0)
    barrier.where = where;
  else if (!same_place(barrier.where, where))
    fault(describe_divergence(barrier, *self, where));
  self->waits_for = &barrier;
  self->where = where;
  if (++barrier.arrived == barrier.count) {
    barrier.arrived = 0;
    ++barrier.generation;
    machine.queue.add(barrier.first, barrier.count);
  }
  suspend();
}

// The threads, blocks and barriers of the next blocks, `first` and those after it.
void set_up(int first) {
  Machine& m = machine;
  const int threads = m.how.threads, warps = threads / kLanes;
  const int count = int(m.blocks.size()), cluster = m.how.cluster;
  m.exited = 0;
  m.grid_barrier = Barrier{"the grid", m.threads.data(), threads * count};
  for (int b = 0; b < count; ++b) {
    Thread* const own = m.threads.data() + int64_t(b) * threads;
    Cluster* const group = &m.clusters[size_t(b / cluster)];
    if (b % cluster == 0) *group = {Barrier{"a cluster", own, threads * cluster}, &m.blocks[size_t(b)]};
    Block& block = m.blocks[size_t(b)];
    block = Block{first + b, m.shared[size_t(b)].get(), Barrier{"a block", own, threads}, {}, threads, false,
                  group};
    if (count > 1) fill_shared(block);
    for (int w = 0; w < warps; ++w) {
      Warp& warp = m.warps[size_t(b) * size_t(warps) + size_t(w)];
      warp.barrier = Barrier{"a warp", own + w * kLanes, kLanes};
      for (int i = w * kLanes; i < (w + 1) * kLanes; ++i) {
        own[i].warp = &warp;
        own[i].block = &block;
        own[i].index = i;
        own[i].waits_for = nullptr;
        own[i].has_exited = false;
      }
    }
  }
}

// Runs the blocks that are set up. False: some threads can never go on.
bool run_blocks() {
  Machine& m = machine;
  m.queue.reset(m.threads.size(), m.how.threads, random_numbers());
  m.queue.add(m.threads.data(), int(m.threads.size()));
  Thread* const next = choose_next();
  switch_context(&m.host, context_of(next));
  m.current = nullptr;
  const bool done = m.exited == int(m.threads.size());
  if (!done) {
    const std::string what =
        m.fault.empty() ? describe_deadlock(m.threads.data(), int(m.threads.size())) : m.fault;
    report_fault(m.kernel, what);
    for (Thread& thread : m.threads)
      if (thread.stack != nullptr) give_back(std::exchange(thread.stack, nullptr));
  }
  return done;
}

}  // namespace

Error launch(const Launch& how, const void* kernel, void (*run)(const void*), const void* call) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const Error error = check_launch(how);
  if (error != Error::kNone) return error;
  Machine& m = machine;
  m.how = how;
  m.kernel = kernel;
  m.run = run;
  m.call = call;
  m.host = Context{};
  m.fault.clear();
  ++m.launches;
  const int at_once = how.cooperative ? how.blocks : how.cluster;
  m.threads.resize(size_t(at_once) * size_t(how.threads));
  m.warps.resize(m.threads.size() / kLanes);
  m.blocks.resize(size_t(at_once));
  m.clusters.resize(size_t(at_once / how.cluster));
  m.shared.clear();
  // Each an allocation of its own, of exactly this size: the sanitizer sees what passes its end.
  for (int b = 0; b < at_once; ++b) m.shared.emplace_back(std::malloc(how.shared_bytes));
  block_size.x = unsigned(how.threads);
  grid_size.x = unsigned(how.blocks);
  std::vector<int> groups(size_t(how.blocks / at_once));
  std::iota(groups.begin(), groups.end(), 0);
  Random& random = random_numbers();
  for (size_t left = groups.size(); left > 0; --left) {
    std::swap(groups[left - 1], groups[random.below(left)]);
    set_up(groups[left - 1] * at_once);
    if (!run_blocks()) return Error::kFault;
  }
  return Error::kNone;
}

void* shared_memory() { return machine.current->block->shared; }

bool sync_block(bool condition, const Where& where) {
  Block& block = *machine.current->block;
  // Two places in turn: a thread may be at the next barrier before another has read the result of this one.
  const unsigned turn = block.barrier.generation % 2;
  if (block.barrier.arrived == 0) block.any[turn] = false;
  block.any[turn] |= condition;
  wait(block.barrier, where);
  return block.any[turn];
}

const uint64_t* exchange(uint64_t bits, const Where& where) {
  Warp& warp = *machine.current->warp;
  uint64_t* const values = warp.values[warp.barrier.generation % 2];  // two in turn, as above
  values[machine.current->index % kLanes] = bits;
  wait(warp.barrier, where);
  return values;
}

void sync_cluster(const Where& where) {
  if (!device_limits().has_clusters)
    fault("ClusterGroup::sync() on a device without clusters" + at_place(where));
  wait(machine.current->block->cluster->barrier, where);
}

void sync_grid(const Where& where) {
  if (!machine.how.cooperative)
    fault("GridGroup::sync() in a launch that is not cooperative" + at_place(where));
  wait(machine.grid_barrier, where);
}

int cluster_rank() {
  const Block* const block = machine.current->block;
  return int(block - block->cluster->first);
}
int cluster_size() { return machine.how.cluster; }

void* shared_of(const void* pointer, int rank, const Where& where) {
  const Block& block = *machine.current->block;
  const ptrdiff_t offset = static_cast<const char*>(pointer) - static_cast<const char*>(block.shared);
  if (offset < 0 || size_t(offset) > machine.how.shared_bytes)
    fault("at() of a pointer outside the block's shared memory" + at_place(where));
  if (rank < 0 || rank >= cluster_size())
    fault("at() of block " + std::to_string(rank) + " in a cluster of " + std::to_string(cluster_size()) +
          at_place(where));
  return static_cast<char*>(block.cluster->first[rank].shared) + offset;
}

void maybe_yield() {
  if (machine.current == nullptr || random_numbers().below(4) != 0) return;
  machine.queue.add_last(machine.current);
  suspend();
}

void trap(const char* reason) { fault(reason); }

}  // namespace icm::simt

extern "C" __attribute__((visibility("default"))) int icm_simt_launches() {
  return icm::simt::machine.launches;
}
