// Sizes of a core's caches, in bytes, as the tile planning takes them.
#pragma once

#include <cstdint>

namespace dwsep {

int64_t l1_cache_bytes();
int64_t l2_cache_bytes();

}  // namespace dwsep
