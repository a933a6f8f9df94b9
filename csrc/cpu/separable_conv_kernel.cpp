#include "cpu/separable_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace dwsep {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The panel stays in L1 while the weights stream from L2; once they outgrow L2, a larger panel in L2 reads them less
// often.
int64_t panel_pixels(const ConvProblem& problem, const KernelTable& kernels, int64_t padded, int64_t blocks) {
  const int64_t bytes_of_pixel = padded * static_cast<int64_t>(sizeof(float));
  const int64_t weight_bytes = blocks * kernels.tile_columns * bytes_of_pixel;
  const int64_t budget = weight_bytes > l2_cache_bytes() / 2 ? l2_cache_bytes() / 4 : l1_cache_bytes() / 2;
  const int64_t total = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const int64_t fair = std::max(ceil_div(total, 2 * thread_count()), kernels.tile_pixels);
  return std::clamp(budget / bytes_of_pixel, 2 * kernels.tile_pixels, std::max(fair, 2 * kernels.tile_pixels));
}

}  // namespace

void separable_conv_forward(ConvProblem problem, const PackedWeights& weights, const SeparableOptions& options,
                            const void* x, void* out) {
  const KernelTable& table = kernels();
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());

  const int64_t padded = ceil_div(problem.inner_channels, table.lanes) * table.lanes;
  const int64_t blocks = ceil_div(problem.out_channels, table.tile_columns);
  const int64_t pixels = panel_pixels(problem, table, padded, blocks);
  const int64_t whole = Tiling(problem, pixels, blocks, 1).count();
  if (whole == 0) return;
  // Few tiles for the threads (a small image): split the output channels too, each part computing its own panel, which
  // is cheap against the pointwise work.
  const int64_t splits = whole >= 2 * thread_count() ? 1 : ceil_div(2 * thread_count(), whole);
  const Tiling tiling(problem, pixels, blocks, thread_count() > 1 ? splits : 1);

  parallel_for(tiling.count(), 1, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tiling.pixels() * padded));
    for (int64_t i = begin; i < end; ++i) table.separable_tile(problem, weights, options, x, out, tiling[i], panel);
  });
}

}  // namespace dwsep
