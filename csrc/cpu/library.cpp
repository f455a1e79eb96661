// Facts about the CPU library. Each operation registers itself at the end of its own file; the operators'
// schema, fake kernel and derivative are declared once, in icm_fast/operators.
#include "instruction_set.h"
#include "tensors.h"

namespace icm {

std::string cpu_instruction_set() { return instruction_set_name(best_instruction_set()); }

}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&icm::cpu_instruction_set));
}
