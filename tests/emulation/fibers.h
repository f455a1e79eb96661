// A fiber: a call stack that can be left in the middle and continued later. One for each CUDA thread.
#pragma once

#include <cstddef>

#if defined(ICM_SIMT_UCONTEXT) || !defined(__ELF__) || !(defined(__x86_64__) || defined(__aarch64__))
#define ICM_SIMT_PORTABLE_SWITCH 1
#include <ucontext.h>
#endif

namespace icm::simt {

struct Stack {
  char* low;
  size_t bytes;
  Stack* next_free;
};

// Where a fiber goes on.
struct Context {
#if defined(ICM_SIMT_PORTABLE_SWITCH)
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
  // For AddressSanitizer, which must know on which stack the program runs.
  const void* low = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// A stack of the pool, with a guard page at its end. Aborts when there is no memory.
Stack* take_stack();
void give_back(Stack* stack);

// `entry` starts on the stack at the first switch to the context, and never returns.
void prepare(Context* context, Stack* stack, void (*entry)());

// Saves this context in `from` and goes on in `to`. `is_last`: nobody will come back to `from`.
void switch_context(Context* from, Context* to, bool is_last = false);
// The first thing that a fiber does.
void finish_switch(Context* self);

}  // namespace icm::simt
