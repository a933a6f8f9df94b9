#include "cpu/stage_output_kernel.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/scratch.h"

namespace dwsep {

void stage_output_forward(const StageOutput& output) {
  const KernelTable& table = kernels();
  const int64_t channels = output.channels;
  parallel_for(output.pixels, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    StageOutput part = output;
    part.x += begin * channels;
    if (part.residual != nullptr) part.residual += begin * channels;
    part.out += begin * channels;
    part.pixels = end - begin;
    table.stage_output(part);
  });
}

void stage_sums(const float* x, int64_t pixels, int64_t channels, double* sums) {
  const KernelTable& table = kernels();
  const int64_t padded = ceil_div(channels, table.lanes) * table.lanes;
  const int64_t parts = std::clamp<int64_t>(pixels * channels / 16384, 1, 32);
  auto* own = reinterpret_cast<double*>(scratch(Scratch::kPack, static_cast<std::size_t>(parts * 2 * padded * 2)));
  std::fill_n(own, parts * 2 * padded, 0.0);
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = pixels * part / parts, stop = pixels * (part + 1) / parts;
      table.moments(x + first * channels, stop - first, channels, own + part * 2 * padded, padded);
    }
  });
  add_moments(own, parts, padded, channels, sums, channels);
}

void stage_corrected(const float* gradient, const float* y, const float* correction, int64_t pixels, int64_t channels,
                     float* out) {
  const KernelTable& table = kernels();
  parallel_for(pixels, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    const int64_t at = begin * channels;
    table.corrected(gradient + at, y + at, correction, end - begin, channels, out + at);
  });
}

}  // namespace dwsep
