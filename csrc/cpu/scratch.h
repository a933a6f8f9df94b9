// Working memory that a thread allocates once and keeps: fresh pages at every call would cost more than the kernels.
#pragma once

#include <cstddef>

namespace dwsep {

enum class Scratch { kPanel, kPack, kPlanes, kPlainWeights, kBlock, kOperands, kRows, kCount };

// At least `count` floats, 64-byte aligned, contents undefined; valid until the thread's next call for the same use.
float* scratch(Scratch use, std::size_t count);

}  // namespace dwsep
