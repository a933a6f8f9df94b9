#include "cpu/dense_conv_kernel.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/patches.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_conv_kernel.h"
#include "cpu/scratch.h"
#include "cpu/workspace.h"

namespace dwsep {
namespace {

// Whether a pixel's patch is a pixel of the input, so that only some of these are left to be multiplied.
bool takes_single_pixels(const ConvProblem& p) {
  return p.kernel[1] == 1 && p.kernel[2] == 1 && p.pad_low[1] == 0 && p.pad_low[2] == 0 &&
         (p.output[1] - 1) * p.stride[1] < p.input[1] && (p.output[2] - 1) * p.stride[2] < p.input[2];
}

// The pixels which a strided 1x1 convolution takes, one behind the other.
void copy_taken_pixels(const ConvProblem& p, const float* x, float* out) {
  const int64_t rows = p.batch * p.output[1], columns = p.output[2];
  parallel_for(rows, std::max<int64_t>(1, 4096 / (columns * p.channels)), [&](int64_t begin, int64_t end) {
    float* target = out + begin * columns * p.channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / p.output[1], y = row % p.output[1] * p.stride[1];
      const float* source = x + (image * p.input[1] + y) * p.input[2] * p.channels;
      for (int64_t column = 0; column < columns; ++column, source += p.stride[2] * p.channels) {
        target = std::copy_n(source, p.channels, target);
      }
    }
  });
}

}  // namespace

void dense_conv_forward(const DenseConv& conv) {
  const KernelTable& table = kernels();
  const ConvProblem& p = conv.problem;
  if (takes_single_pixels(p)) {
    const int64_t pixels = p.batch * p.output[1] * p.output[2];
    const Workspace taken(static_cast<std::size_t>(pixels * p.channels));
    copy_taken_pixels(p, conv.x, taken.data());
    return pointwise_conv_forward({pixels, p.channels, p.out_channels, taken.data(), conv.packed, conv.activation,
                                   conv.residual, conv.out, nullptr, 0, conv.pairs});
  }
  const Patches patches(p, conv.x);
  const PackedPointwise packed(table, p.inner_channels, p.out_channels, conv.packed);
  // Tiles take many pixels together, and read them from L2 as well.
  const bool on_tiles = conv.pairs && table.operands.prepared(ElementType::kBFloat16);
  const int64_t fit = on_tiles ? packed.pixels_in_l2(table) : packed.pixels_in_l1(table);
  const int64_t columns = p.output[2], tile = std::min(columns, fit);
  const int64_t tiles = ceil_div(columns, tile);
  parallel_runs(p.batch * p.output[1], [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * packed.inner));
    float* rows = scratch(Scratch::kPlanes, static_cast<std::size_t>(patches.rows_floats(table.lanes)));
    for (int64_t row = begin; row < end; ++row) {
      patches.fill_rows(table, row / p.output[1], row % p.output[1], 1, rows);
      for (int64_t part = 0; part < tiles; ++part) {
        const int64_t column = columns * part / tiles, pixels = columns * (part + 1) / tiles - column;
        const int64_t step = patches.step();
        const PatchRuns& runs = patches.runs();
        const auto run_count = static_cast<int64_t>(runs.at.size());
        const int64_t at = (row * columns + column) * p.out_channels;
        const float *source = rows + column * step, *residual = conv.residual != nullptr ? conv.residual + at : nullptr;
        if (!conv.pairs &&
            table.dense_row({source, runs.at.data(), run_count, runs.length, step, pixels, p.out_channels,
                             packed.weights, packed.bias, packed.inner, conv.activation, residual, conv.out + at})) {
          continue;
        }
        table.patch_row(runs.job(source, step, pixels, panel, pixels * table.lanes));
        if (conv.pairs) pair_panel_in_place(table, packed.inner, pixels, panel);
        table.pointwise_tile({panel,
                              0,
                              p.inner_channels,
                              pixels,
                              p.out_channels,
                              packed.weights,
                              packed.bias,
                              conv.activation,
                              residual,
                              conv.out + at,
                              0,
                              packed.blocks,
                              {},
                              conv.pairs ? Operands::kPairs : Operands::kFloats});
      }
    }
  });
}

}  // namespace dwsep
