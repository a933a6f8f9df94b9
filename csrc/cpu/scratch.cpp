#include "cpu/scratch.h"

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

}  // namespace

float* scratch(Scratch use, std::size_t count) {
  thread_local std::array<Buffer, static_cast<std::size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<std::size_t>(use)];
  if (buffer.capacity < count) {
    constexpr std::size_t kAlignment = 64;
    const std::size_t bytes = (count * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data.reset();
    buffer.capacity = 0;
    buffer.data.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.capacity = bytes / sizeof(float);
  }
  return buffer.data.get();
}

}  // namespace dwsep
