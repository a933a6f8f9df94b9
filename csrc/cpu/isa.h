// The instruction sets compiled into the library, and the one in use.
#pragma once

#include <string>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"

namespace dwsep {

std::string compiled_isas();   // comma separated, slowest first
std::string supported_isas();  // those of them which this CPU runs
bool set_isa(const std::string& name);
const KernelTable& kernels();

}  // namespace dwsep
