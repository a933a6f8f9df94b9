// Memory for large tensors, kept when they are freed: fresh pages would cost more than the kernels that fill them.
//
// A heap of pieces of 32 MiB and more, in huge pages where the system has them. Pieces that nobody has used for a few
// thousand allocations go back to the system by themselves, all free ones by `release_kept_memory`.
#pragma once

#include <cstddef>

namespace dwsep {

enum class Keeping { kOff, kOn, kSpoil };

// DWSEP_KEEP_MEMORY: with 0 every block is the C library's, and goes back to it; with "spoil" what is taken is filled
// with NaN, for tests.
Keeping keeping();

// 64-byte aligned, contents undefined. Throws std::bad_alloc.
void* take_memory(std::size_t bytes);

// From any thread.
void give_memory_back(void* memory);

// Returns how many bytes the system has got back.
std::size_t release_kept_memory();

}  // namespace dwsep
