#include "cpu/stage_gate_kernel.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

// Parts of every image, each with sums of its own; how many depends on the shape alone.
struct ImageParts {
  const KernelTable& table;
  int64_t padded, tile, per_image, count;

  ImageParts(const PendingImages& input, const KernelTable& kernels)
      : table(kernels),
        padded(ceil_div(input.channels, kernels.lanes) * kernels.lanes),
        // A tile's channels are read a block at a time: it stays near. Sums go to doubles after eight pixels.
        tile(std::max<int64_t>(8, 4096 / input.channels / 8 * 8)),
        per_image(std::clamp<int64_t>(input.pixels * input.channels / 16384, 1,
                                      std::max<int64_t>(1, 32 / std::max<int64_t>(1, input.images)))),
        count(per_image * input.images) {}

  double* sums(int64_t rows) const {
    const int64_t values = count * rows * padded;
    auto* sums = reinterpret_cast<double*>(scratch(Scratch::kPack, static_cast<std::size_t>(2 * values)));
    std::fill_n(sums, values, 0.0);
    return sums;
  }

  // f(part, image, first pixel of all, pixels) for tiles of an image.
  template <class F>
  void run(const PendingImages& input, const F& f) const {
    parallel_parts(count, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t image = part / per_image, of = part % per_image;
        const int64_t stop = input.pixels * (of + 1) / per_image;
        for (int64_t pixel = input.pixels * of / per_image; pixel < stop; pixel += tile) {
          f(part, image, image * input.pixels + pixel, std::min(tile, stop - pixel));
        }
      }
      table.finish_streams();
    });
  }
};

}  // namespace

void stage_image_sums(const PendingImages& input, const float* gradient, double factor, float* out) {
  const KernelTable& table = kernels();
  const ImageParts parts(input, table);
  double* sums = parts.sums(1);
  parts.run(input, [&](int64_t part, int64_t, int64_t pixel, int64_t pixels) {
    const int64_t at = pixel * input.channels;
    table.stage_product_sums({gradient == nullptr ? nullptr : gradient + at, input.x + at, input.scale, input.shift,
                              input.activation, pixels, input.channels, sums + part * parts.padded, parts.tile});
  });
  for (int64_t image = 0; image < input.images; ++image) {
    double* total = sums + image * parts.per_image * parts.padded;
    for (int64_t part = 1; part < parts.per_image; ++part) {
      const double* sum = total + part * parts.padded;
      for (int64_t channel = 0; channel < input.channels; ++channel) total[channel] += sum[channel];
    }
    for (int64_t channel = 0; channel < input.channels; ++channel) {
      out[image * input.channels + channel] = static_cast<float>(factor * total[channel]);
    }
  }
}

void stage_gated(const PendingImages& input, const float* gate, float* out) {
  const KernelTable& table = kernels();
  const int64_t channels = input.channels;
  parallel_for(input.images * input.pixels, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t image = begin / input.pixels;
      const int64_t stop = std::min(end, (image + 1) * input.pixels), at = begin * channels;
      table.stage_output({input.x + at, input.scale, input.shift, input.activation, nullptr, stop - begin, channels,
                          out + at, gate + image * channels});
      begin = stop;
    }
  });
}

void stage_gated_backward(const PendingImages& input, const float* gradient, const float* gate,
                          const float* mean_gradient, float* x_gradient, double* affine_gradient) {
  const KernelTable& table = kernels();
  const int64_t channels = input.channels;
  const ImageParts parts(input, table);
  double* sums = parts.sums(2);
  const bool stream = streams(x_gradient, input.images * input.pixels, channels, channels, kTrainingStreamBytes);
  parts.run(input, [&](int64_t part, int64_t image, int64_t pixel, int64_t pixels) {
    const int64_t at = pixel * channels, values = image * channels;
    table.stage_gradient_row({gradient == nullptr ? nullptr : gradient + at, channels, table.lanes, input.x + at,
                              input.scale, input.shift, input.activation, channels, pixels, channels, x_gradient + at,
                              stream, sums + part * 2 * parts.padded, parts.padded,
                              gate == nullptr ? nullptr : gate + values,
                              mean_gradient == nullptr ? nullptr : mean_gradient + values,
                              1.0f / static_cast<float>(input.pixels), parts.tile});
  });
  if (affine_gradient != nullptr) add_moments(sums, parts.count, parts.padded, channels, affine_gradient, channels);
}

}  // namespace dwsep
