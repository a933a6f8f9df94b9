// Copies of dense tensors from one memory format into the other.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

// (N, C, pixels) to (N, pixels, C).
void copy_to_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                           void* out);

// And back.
void copy_from_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                             void* out);

}  // namespace dwsep
