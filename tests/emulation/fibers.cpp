// The switch itself is assembly because ucontext makes two system calls at every switch.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace icm::simt {
namespace {

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // frames have red zones, and a report is written from the fiber
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kStacksAtOnce = 64;
// Each guard page costs two of the 65530 mappings that Linux gives a process.
constexpr size_t kMostGuards = 16384;

Stack* free_stacks = nullptr;
size_t stack_count = 0;
Context* left = nullptr;  // the context of the last switch

void add_stacks() {
  const size_t stride = kStackBytes + kPage;
  void* const memory = mmap(nullptr, stride * kStacksAtOnce, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "icm simt: no memory for the stacks of more than %zu threads\n", stack_count);
    std::abort();
  }
  for (size_t i = kStacksAtOnce; i-- > 0;) {
    char* const low = static_cast<char*>(memory) + i * stride;
    if (stack_count++ < kMostGuards) mprotect(low, kPage, PROT_NONE);
    free_stacks = new Stack{low + kPage, kStackBytes, free_stacks};
  }
}

// Stacks that end at the same place of a page would fight for the same lines of the cache.
char* colored_top(const Stack* stack) {
  const size_t number = reinterpret_cast<uintptr_t>(stack->low) / kPage;
  return stack->low + stack->bytes - 64 - number % 16 * 256;
}

}  // namespace

Stack* take_stack() {
  if (free_stacks == nullptr) add_stacks();
  Stack* const stack = free_stacks;
  free_stacks = stack->next_free;
  return stack;
}

void give_back(Stack* stack) {
  stack->next_free = free_stacks;
  free_stacks = stack;
}

#if defined(ICM_SIMT_PORTABLE_SWITCH)

void prepare_registers(Context* context, Stack* stack, void (*entry)()) {
  getcontext(&context->registers);
  context->registers.uc_stack.ss_sp = stack->low;
  context->registers.uc_stack.ss_size = size_t(colored_top(stack) - stack->low);
  context->registers.uc_link = nullptr;
  makecontext(&context->registers, entry, 0);
}
void switch_registers(Context* from, Context* to) { swapcontext(&from->registers, &to->registers); }

#else

extern "C" void icm_simt_switch(void** from, void* to);

// Saves the registers that a called function must keep, on the stack that is left.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden icm_simt_switch
.globl icm_simt_switch
.type icm_simt_switch, @function
icm_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size icm_simt_switch, .-icm_simt_switch
)");
constexpr int kSavedWords = 8, kEntryWord = 6;  // the word after the entry is its return address: none
#else
asm(R"(
.text
.p2align 4
.hidden icm_simt_switch
.globl icm_simt_switch
.type icm_simt_switch, %function
icm_simt_switch:
  sub sp, sp, #160
  stp x29, x30, [sp]
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x29, x30, [sp]
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size icm_simt_switch, .-icm_simt_switch
)");
constexpr int kSavedWords = 20, kEntryWord = 1;
#endif

void prepare_registers(Context* context, Stack* stack, void (*entry)()) {
  uint64_t* const saved = reinterpret_cast<uint64_t*>(colored_top(stack)) - kSavedWords;
  for (int i = 0; i < kSavedWords; ++i) saved[i] = 0;
  saved[kEntryWord] = reinterpret_cast<uint64_t>(entry);
  context->stack_pointer = saved;
}
void switch_registers(Context* from, Context* to) {
  icm_simt_switch(&from->stack_pointer, to->stack_pointer);
}

#endif

void prepare(Context* context, Stack* stack, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack->low, stack->bytes);  // a fiber that was given up leaves its red zones
#endif
  context->low = stack->low;
  context->bytes = stack->bytes;
  context->fake_stack = nullptr;
  prepare_registers(context, stack, entry);
}

void switch_context(Context* from, Context* to, [[maybe_unused]] bool is_last) {
  left = from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(is_last ? nullptr : &from->fake_stack, to->low, to->bytes);
#endif
  switch_registers(from, to);
  finish_switch(from);
}

void finish_switch([[maybe_unused]] Context* self) {
#if defined(__SANITIZE_ADDRESS__)
  const void* low = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self->fake_stack, &low, &bytes);
  if (left->low == nullptr) left->low = low, left->bytes = bytes;  // the thread that started it all
#endif
}

}  // namespace icm::simt
