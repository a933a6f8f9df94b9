#include "cpu/scratch.h"

#ifdef DWSEP_SANITIZE
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <limits>
#endif

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace dwsep {
namespace {

struct Free {
  void operator()(float* pointer) const { std::free(pointer); }
};

struct Buffer {
  std::unique_ptr<float, Free> data;
  std::size_t capacity = 0;
};

#ifdef DWSEP_SANITIZE
// A buffer that has grown for another problem would hide what goes beyond this one's part, and what an earlier call
// has left would pass for something written.
void spoil(const Buffer& buffer, std::size_t count) {
  float* data = buffer.data.get();
  ASAN_UNPOISON_MEMORY_REGION(data, buffer.capacity * sizeof(float));
  std::fill_n(data, count, std::numeric_limits<float>::quiet_NaN());
  ASAN_POISON_MEMORY_REGION(data + count, (buffer.capacity - count) * sizeof(float));
}
#endif

}  // namespace

float* scratch(Scratch use, std::size_t count) {
  thread_local std::array<Buffer, static_cast<std::size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<std::size_t>(use)];
  if (buffer.capacity < count) {
    constexpr std::size_t kAlignment = 64;
    // Tiles have 16 rows of 64 bytes, two of them are read at a time, and of a panel's last ones one pixel may be all
    // that there is.
    constexpr std::size_t kBehind = 2 * 16 * 64;
    const std::size_t bytes = (count * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data.reset();
    buffer.capacity = 0;
    buffer.data.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes + kBehind)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.capacity = bytes / sizeof(float);
  }
#ifdef DWSEP_SANITIZE
  spoil(buffer, count);
#endif
  return buffer.data.get();
}

}  // namespace dwsep
