// Passes over whole tensors, dense and all in the same layout.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

// out = gradient times the activation's derivative at raw.
void activation_gradient(Activation activation, ElementType type, const void* raw, const void* gradient, void* out,
                         int64_t count);

// target += addend.
void add_in_place(ElementType type, void* target, const void* addend, int64_t count);

}  // namespace dwsep
