#include "cpu/separable_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/repeated_channels.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "cpu/tile_ahead.h"
#include "cpu/tiling.h"

namespace dwsep {
namespace {

int64_t pixels_of(const ConvProblem& problem) {
  return problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
}

// Where input and output take more than this together, an ordinary store waits for its line to come from memory,
// although the last cache would hold both: other tensors and other cores have had it since.
constexpr int64_t kKeptBytes = int64_t{8} << 20;

// Prepared operands live in L2, whatever the weights do, and want whole groups of 32 pixels: of the tiles of whole rows
// that fit, the one that leaves least of its last group unused.
int64_t prepared_pixels(const ConvProblem& problem, const KernelTable& kernels, int64_t padded) {
  constexpr int64_t kGroup = 32;
  const int64_t bytes = kernels.operands.floats(problem.element_type, kGroup, padded) * 4;
  const int64_t fit = std::max<int64_t>(1, l2_cache_bytes() / 3 / bytes) * kGroup;
  const int64_t fair = ceil_div(ceil_div(pixels_of(problem), 2 * thread_count()), kGroup) * kGroup;
  const int64_t most = std::max(kGroup, std::min({fit, fair, 16 * kGroup})), columns = problem.output[2];
  if (columns == 0 || columns > most) return most;
  int64_t best = most / columns, waste = kGroup;
  for (int64_t rows = most / columns; rows >= std::max<int64_t>(1, most / columns / 2); --rows) {
    // Per pixel: a shorter tile must be clearly better.
    const int64_t unused = (kGroup - rows * columns % kGroup) % kGroup;
    if (unused * best * columns < waste * rows * columns) {
      best = rows;
      waste = unused;
    }
  }
  return best * columns;
}

// The panel stays in L1 while the weights stream from L2, or is one of two rows in L2 where those share the lines that
// their taps read. Weights that outgrow L2 come from afar once a panel: a large one, and where a thread's share of the
// pixels is small, one of everybody's pixels by a share of the output channels.
int64_t panel_pixels(const ConvProblem& problem, const KernelTable& kernels, int64_t padded, int64_t blocks) {
  constexpr int64_t kSmallShare = 64;
  const int64_t bytes_of_pixel = padded * static_cast<int64_t>(sizeof(float)), least = 2 * kernels.tile_pixels;
  const int64_t block_bytes = kernels.tile_columns * bytes_of_pixel, pixels = pixels_of(problem);
  if (blocks * block_bytes > l2_cache_bytes() / 2) {
    const int64_t share = ceil_div(pixels, thread_count());
    if (share < kSmallShare && pixels * bytes_of_pixel <= l2_cache_bytes() * 3 / 4) return std::max(pixels, least);
    return std::max(least, std::min(share, (l2_cache_bytes() * 3 / 8 - block_bytes) / bytes_of_pixel));
  }
  const int64_t fair = std::max(ceil_div(pixels, 2 * thread_count()), least);
  const int64_t two_rows = 2 * problem.output[2];
  const bool shared =
      problem.stride[1] == 1 && problem.dilation[1] == 1 && two_rows * bytes_of_pixel <= l2_cache_bytes() / 4;
  const int64_t wanted = std::max(l1_cache_bytes() / 2 / bytes_of_pixel, shared ? two_rows : 0);
  return std::clamp(wanted, least, fair);
}

}  // namespace

void separable_conv_forward(ConvProblem problem, const PackedWeights& weights, SeparableOptions options, const void* x,
                            void* out) {
  const KernelTable& table = kernels();
  if (problem.multiplier > 1 && (options.residual == Residual::kDepthwise || !separates_ranks(problem, table))) {
    const RepeatedChannels wide(problem, x);
    if (options.addend == nullptr) options.addend = x;
    return separable_conv_forward(of_repeated_channels(problem), weights, options, wide.data(), out);
  }
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());

  const int64_t padded = panel_channels(problem, table);
  const int64_t blocks = ceil_div(problem.out_channels, table.tile_columns);
  const bool prepared = !options.pairs && table.operands.prepared(problem.element_type);
  const int64_t pixels =
      prepared ? prepared_pixels(problem, table, padded) : panel_pixels(problem, table, padded, blocks);
  const int64_t shares = prepared ? 1 : thread_count();
  const int64_t whole = Tiling(problem, pixels, blocks, 1, shares).count();
  if (whole == 0) return;
  // Fewer tiles than threads (a small image): split the output channels too, each part computing its own panel, which
  // is cheap against the pointwise work.
  const int64_t splits = whole >= thread_count() ? 1 : ceil_div(thread_count(), whole);
  const Tiling tiling(problem, pixels, blocks, splits, shares);

  const int64_t element_size = element_bytes(problem.element_type);
  const int64_t x_pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
  const int64_t elements = x_pixels * problem.channels + pixels_of(problem) * problem.out_channels;
  const bool ask = splits == 1 && x_pixels * problem.channels * element_size > l2_cache_bytes() / 2;
  options.stream = (elements * element_size > kKeptBytes || options.fresh) &&
                   streams(problem.element_type, out, pixels_of(problem), problem.out_channels, problem.out_channels,
                           kForwardStreamBytes);
  parallel_runs(tiling.count(), [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(table.separable_floats(problem, tiling.pixels())));
    for (int64_t i = begin; i < end; ++i) {
      Prefetch ahead = {};
      if (ask && i + 1 < end) ahead.ranges[0] = input_rows_behind(problem, tiling[i], x, element_size, {});
      table.separable_tile(problem, weights, options, x, out, tiling[i], panel, ahead);
    }
    if (options.stream) table.finish_streams();
  });
}

}  // namespace dwsep
