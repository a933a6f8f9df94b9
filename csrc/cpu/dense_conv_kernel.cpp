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

// Whether no two patches share a pixel of the input and all lie inside it, so that each need only be copied once.
bool patches_are_apart(const ConvProblem& p) {
  for (const int axis : {1, 2}) {
    const bool dense = p.kernel[axis] == 1 || p.dilation[axis] == 1;
    const int64_t reach = (p.output[axis] - 1) * p.stride[axis] + p.kernel[axis];
    if (!dense || p.pad_low[axis] != 0 || p.stride[axis] < p.kernel[axis] || reach > p.input[axis]) return false;
  }
  return true;
}

// Such patches, one behind the other.
void copy_patches(const ConvProblem& p, const float* x, float* out) {
  const int64_t rows = p.batch * p.output[1], columns = p.output[2], run = p.kernel[2] * p.channels;
  const int64_t in_row = p.input[2] * p.channels, floats_of_row = columns * p.inner_channels;
  parallel_for(rows, std::max<int64_t>(1, 4096 / floats_of_row), [&](int64_t begin, int64_t end) {
    float* target = out + begin * floats_of_row;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / p.output[1], y = row % p.output[1] * p.stride[1];
      const float* source = x + (image * p.input[1] + y) * in_row;
      for (int64_t column = 0; column < columns; ++column, source += p.stride[2] * p.channels) {
        for (int64_t tap = 0; tap < p.kernel[1]; ++tap) target = std::copy_n(source + tap * in_row, run, target);
      }
    }
  });
}

}  // namespace

void dense_conv_forward(const DenseConv& conv) {
  const KernelTable& table = kernels();
  const ConvProblem& p = conv.problem;
  // Of few channels they are read where they lie.
  if (patches_are_apart(p) && p.kernel[2] * p.channels >= table.lanes) {
    const int64_t pixels = p.batch * p.output[1] * p.output[2];
    const Workspace taken(static_cast<std::size_t>(pixels * p.inner_channels));
    copy_patches(p, conv.x, taken.data());
    return pointwise_conv_forward({pixels, p.inner_channels, p.out_channels, taken.data(), conv.packed, conv.activation,
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
