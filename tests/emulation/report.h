// What is said when a kernel cannot go on.
#pragma once

#include <string>

#include "threads.h"

namespace icm::simt {

bool same_place(const Where& a, const Where& b);
std::string at_place(const Where& where);
std::string describe_divergence(const Barrier& barrier, const Thread& thread, const Where& where);
std::string describe_deadlock(const Thread* threads, int count);
// Writes it to standard error, and keeps it for error_string.
void report_fault(const void* kernel, const std::string& what);

}  // namespace icm::simt
