// Several outputs per input channel in channels last: the kernels read and write vectors of neighbouring channels, so
// that a copy with every channel as many times costs less than single floats picked from between others.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

// target[i * count + j] = source[i] for every j below count, i below size.
void repeat_elements(ElementType type, const void* source, int64_t size, int64_t count, void* target);

// target[i] = the sum over j of source[i * count + j], in the order of j.
void sum_repeated_elements(const float* source, int64_t size, int64_t count, float* target);

// The problem of the copy: every output channel has an input channel of its own.
ConvProblem of_repeated_channels(ConvProblem problem);

}  // namespace dwsep
