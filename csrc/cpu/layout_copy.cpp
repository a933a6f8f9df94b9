#include "cpu/layout_copy.h"

#include <algorithm>

#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"

namespace dwsep {
namespace {

// Pixels at a time: some lines of every channel, so that what is fetched ahead is used, and of few enough channels'
// pages.
constexpr int64_t kPixels = 64;

// From one to the other, `source` and `target` being channels last or not.
void copy(ElementType type, const void* source, int64_t images, int64_t channels, int64_t pixels, bool to_last,
          void* target) {
  const KernelTable& table = kernels();
  const int64_t chunks = ceil_div(pixels, kPixels), bytes = element_bytes(type);
  const int64_t grain = std::max<int64_t>(1, 32768 / (kPixels * std::max<int64_t>(1, channels)));
  parallel_for(images * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks * kPixels, count = std::min(kPixels, pixels - first);
      const int64_t image = i / chunks * channels * pixels;
      const int64_t planar = (image + first) * bytes, last = (image + first * channels) * bytes;
      if (to_last) {
        table.transposed_copy(
            {type, advanced(source, planar), pixels, channels, count, advanced(target, last), channels});
      } else {
        table.transposed_copy(
            {type, advanced(source, last), channels, count, channels, advanced(target, planar), pixels});
      }
    }
  });
}

}  // namespace

void copy_to_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                           void* out) {
  copy(type, x, images, channels, pixels, true, out);
}

void copy_from_channels_last(ElementType type, const void* x, int64_t images, int64_t channels, int64_t pixels,
                             void* out) {
  copy(type, x, images, channels, pixels, false, out);
}

}  // namespace dwsep
