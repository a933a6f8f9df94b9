// Sizes of a core's caches, in bytes, as the tile planning takes them.
#pragma once

#include <cstdint>

namespace dwsep {

int64_t l1_cache_bytes();
int64_t l2_cache_bytes();

// Whether the second cache takes the rows that a direct convolution comes back to beside all that passes through it.
inline bool has_large_second_cache() { return l2_cache_bytes() >= int64_t{2} << 20; }

}  // namespace dwsep
