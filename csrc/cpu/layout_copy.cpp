#include "cpu/layout_copy.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"

namespace dwsep {
namespace {

// Pixels at a time: some lines of every channel, so that what is fetched ahead is used, and of few enough channels'
// pages.
constexpr int64_t kPixels = 64;

// f(image, first pixel, pixels) for all of them.
template <class F>
void for_pixels(int64_t images, int64_t channels, int64_t pixels, const F& f) {
  const int64_t chunks = ceil_div(pixels, kPixels);
  const int64_t grain = std::max<int64_t>(1, 32768 / (kPixels * std::max<int64_t>(1, channels)));
  parallel_for(images * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks * kPixels;
      f(i / chunks, first, std::min(kPixels, pixels - first));
    }
  });
}

int64_t size_of(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

}  // namespace

void copy_to_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                           void* out) {
  const KernelTable& table = kernels();
  const auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(out);
  for_pixels(images, channels, pixels, [&](int64_t image, int64_t first, int64_t count) {
    const int64_t at = image * channels * pixels;
    table.transposed_copy({type, from + (at + first) * size_of(type), pixels, channels, count,
                           to + (at + first * channels) * size_of(type), channels});
  });
}

void copy_from_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                             void* out) {
  const KernelTable& table = kernels();
  const auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(out);
  for_pixels(images, channels, pixels, [&](int64_t image, int64_t first, int64_t count) {
    const int64_t at = image * channels * pixels;
    table.transposed_copy({type, from + (at + first * channels) * size_of(type), channels, count, channels,
                           to + (at + first) * size_of(type), pixels});
  });
}

}  // namespace dwsep
