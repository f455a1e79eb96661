#include "report.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace icm::simt {
namespace {

std::string last_fault;

// Kernels are local symbols, which only the symbol table of the library's file knows.
std::string kernel_name(const void* kernel) {
  Dl_info info{};
  if (dladdr(kernel, &info) == 0 || info.dli_fname == nullptr) return "a kernel";
  char command[4096], name[2048] = "";
  std::snprintf(command, sizeof command, "addr2line -Cfe '%s' 0x%zx 2>/dev/null", info.dli_fname,
                size_t(static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase)));
  if (FILE* const output = popen(command, "r")) {
    if (std::fgets(name, sizeof name, output) != nullptr) name[std::strcspn(name, "\n")] = 0;
    pclose(output);
  }
  return name[0] == 0 || name[0] == '?' ? "a kernel" : name;
}

std::string thread_name(const Thread& thread) {
  return "thread " + std::to_string(thread.index) + " of block " + std::to_string(thread.block->index);
}

}  // namespace

bool same_place(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string at_place(const Where& where) {
  return std::string(" at ") + where.file + ":" + std::to_string(where.line) + " (" + where.function + ")";
}

std::string describe_divergence(const Barrier& barrier, const Thread& thread, const Where& where) {
  return "divergence: threads of " + std::string(barrier.group) +
         " wait for each other at different places: " + std::to_string(barrier.arrived) + " of " +
         std::to_string(barrier.count) + at_place(barrier.where) + ", but " + thread_name(thread) +
         at_place(where);
}

std::string describe_deadlock(const Thread* threads, int count) {
  struct Crowd {
    int size = 0;
    const Thread* example = nullptr;
  };
  std::map<std::string, Crowd> crowds;
  for (const Thread* thread = threads; thread != threads + count; ++thread) {
    Crowd& crowd = crowds[thread->has_exited ? " ended"
                                             : " waiting for " + std::string(thread->waits_for->group) +
                                                   at_place(thread->where)];
    if (crowd.size++ == 0) crowd.example = thread;
  }
  std::string text = "deadlock: some threads wait for others that never come:";
  for (const auto& [what, crowd] : crowds)
    text +=
        "\n  " + std::to_string(crowd.size) + " threads" + what + ", such as " + thread_name(*crowd.example);
  return text;
}

void report_fault(const void* kernel, const std::string& what) {
  last_fault = "icm simt: " + kernel_name(kernel) + ": " + what;
  std::fprintf(stderr, "%s\n", last_fault.c_str());
}

const char* error_string(Error error) {
  switch (error) {
    case Error::kNone:
      return "no error";
    case Error::kConfiguration:
      return "icm simt: invalid numbers of blocks, threads or blocks in a cluster";
    case Error::kSharedMemory:
      return "icm simt: more shared memory than a block can have";
    case Error::kCluster:
      return "icm simt: no such clusters on this device";
    case Error::kCooperative:
      return "icm simt: a cooperative launch of more blocks than fit on the device at once";
    case Error::kFault:
      return last_fault.c_str();
  }
  return "unknown error";
}

}  // namespace icm::simt
