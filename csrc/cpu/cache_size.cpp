#include "cpu/cache_size.h"

#include <unistd.h>

namespace dwsep {
namespace {

int64_t query([[maybe_unused]] int name, int64_t otherwise) {
  const long bytes = sysconf(name);
  return bytes > 0 ? static_cast<int64_t>(bytes) : otherwise;
}

}  // namespace

int64_t l1_cache_bytes() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const int64_t bytes = query(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  return bytes;
#else
  return 32 << 10;
#endif
}

int64_t l2_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = query(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
  return bytes;
#else
  return 512 << 10;
#endif
}

}  // namespace dwsep
