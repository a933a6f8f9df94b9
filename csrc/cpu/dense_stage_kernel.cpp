#include "cpu/dense_stage_kernel.h"

#include <algorithm>

#include "cpu/dense_input_gradient.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/patches.h"
#include "cpu/row_units.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
constexpr int64_t kMostParts = 16;

int64_t most_parts(int64_t floats_of_part) {
  constexpr int64_t kSumsBytes = int64_t{32} << 20;
  return std::clamp<int64_t>(kSumsBytes / kFloatBytes / std::max<int64_t>(1, floats_of_part), 2, kMostParts);
}

// Output pixels of a few rows, whose inputs are prepared together.
struct OutputRows {
  const KernelTable& table;
  const DenseStage& stage;
  Patches patches;
  RowUnits units;
  int64_t inner_blocks, k_blocks;

  OutputRows(const DenseStage& of, int64_t parts)
      : table(kernels()),
        stage(of),
        patches(of.problem, of.x, of.load),
        units(of.problem.batch, of.problem.output[1], parts,
              [&](int64_t rows) { return patches.rows_floats(kernels().lanes, rows); }),
        inner_blocks(ceil_div(of.problem.inner_channels, table.lanes)),
        k_blocks(ceil_div(of.problem.out_channels, table.lanes)) {}

  int64_t width() const { return stage.problem.output[2]; }
  // Of all images' pixels, the first of a unit.
  int64_t first_pixel(int64_t unit) const {
    return (units.image_of(unit) * stage.problem.output[1] + units.rows_of(unit).begin) * width();
  }
  float* rows_memory() const {
    return scratch(Scratch::kRows, static_cast<std::size_t>(patches.rows_floats(table.lanes, units.most_rows())));
  }
  void fill(int64_t unit, float* rows) const {
    const Range range = units.rows_of(unit);
    patches.fill_rows(table, units.image_of(unit), range.begin, range.size(), rows);
  }
  MemoryRange under(int64_t unit) const {
    const Range range = units.rows_of(unit);
    return patches.under(units.image_of(unit), range.begin, range.size());
  }
  // f(first of the unit's pixels, the one behind the last, which tile of how many).
  template <class F>
  void for_tiles(int64_t unit, int64_t tile, const F& f) const {
    const int64_t pixels = units.rows_of(unit).size() * width(), tiles = ceil_div(pixels, tile);
    for (int64_t i = 0; i < tiles; ++i) f(pixels * i / tiles, pixels * (i + 1) / tiles, i, tiles);
  }
};

void add_weight_gradient(const OutputRows& rows, const DenseStageGradients& gradients, int64_t part, int64_t tile,
                         float* memory, float* weight_sums, float* bias_sums) {
  const KernelTable& table = rows.table;
  const RowUnits& units = rows.units;
  const int64_t lanes = table.lanes, outputs = rows.stage.problem.out_channels, k_padded = rows.k_blocks * lanes;
  float* input_rows = rows.rows_memory();
  StageLoad load = {};
  if (gradients.correction != nullptr) {
    load = {gradients.y, gradients.correction, gradients.correction + outputs, Activation::kNone};
  }
  std::fill_n(bias_sums, k_padded, 0.0f);
  std::fill_n(weight_sums, rows.inner_blocks * lanes * k_padded, 0.0f);
  const Range range = units.units_of(part);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    rows.fill(unit, input_rows);
    Prefetch next = {};
    if (unit + 1 < units.count()) {
      const int64_t from = rows.first_pixel(unit + 1) * outputs;
      const int64_t bytes = units.rows_of(unit + 1).size() * rows.width() * outputs * kFloatBytes;
      next = {{{gradients.gradient + from, bytes},
               {gradients.y + from, gradients.correction != nullptr ? bytes : 0},
               rows.under(unit + 1)}};
    }
    rows.for_tiles(unit, tile, [&](int64_t first, int64_t end, int64_t index, int64_t count) {
      const int64_t pixels = end - first;
      float* gradient = memory;
      float* input = gradient + rows.k_blocks * pixels * lanes;
      load_stage_row(table, load, (rows.first_pixel(unit) + first) * outputs, 0,
                     {gradients.gradient, nullptr, nullptr, nullptr, Activation::kNone, outputs, pixels, outputs,
                      gradient, pixels * lanes});
      for (int64_t block = 0; gradients.bias_gradient != nullptr && block < rows.k_blocks; ++block) {
        table.sum_row(gradient + block * pixels * lanes, pixels, bias_sums + block * lanes);
      }
      rows.patches.gather(table, input_rows, first, pixels, input);
      table.outer_product({gradient, outputs, input, rows.inner_blocks, pixels, weight_sums, k_padded * lanes, false,
                           share_of(next, index, count),
                           outer_product_memory(table, outputs, rows.inner_blocks, pixels, rows.stage.rounds),
                           rows.stage.rounds});
    });
  }
}

void weight_gradient(const DenseStage& stage, const DenseStageGradients& gradients) {
  const KernelTable& table = kernels();
  const int64_t lanes = table.lanes, inner = stage.problem.inner_channels, outputs = stage.problem.out_channels;
  const int64_t weight_floats = ceil_div(inner, lanes) * lanes * ceil_div(outputs, lanes) * lanes;
  const OutputRows rows(stage, most_parts(weight_floats));
  const RowUnits& units = rows.units;
  const int64_t k_padded = rows.k_blocks * lanes, pixel_floats = (rows.k_blocks + rows.inner_blocks) * lanes;
  const int64_t tile = std::clamp<int64_t>(l2_cache_bytes() / 2 / (pixel_floats * kFloatBytes), 2 * table.tile_pixels,
                                           14 * table.tile_pixels);
  Layout layout;
  const int64_t weights_at = layout.add(units.parts * weight_floats), bias_at = layout.add(units.parts * k_padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float *weight_sums = memory + weights_at, *bias_sums = memory + bias_at;
  parallel_parts(units.parts, [&](int64_t begin, int64_t end) {
    float* panels = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * pixel_floats));
    for (int64_t part = begin; part < end; ++part) {
      add_weight_gradient(rows, gradients, part, tile, panels, weight_sums + part * weight_floats,
                          bias_sums + part * k_padded);
    }
  });
  add_parts(bias_sums, units.parts, k_padded, k_padded);
  if (gradients.bias_gradient != nullptr) std::copy_n(bias_sums, outputs, gradients.bias_gradient);
  const int64_t channels = stage.problem.channels, taps = inner / channels;
  parallel_for(rows.inner_blocks, std::max<int64_t>(1, 16384 / (k_padded * lanes)), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = weight_sums + block * k_padded * lanes;
      add_parts(sums, units.parts, weight_floats, outputs * lanes);
      for (int64_t i = block * lanes; i < std::min(inner, (block + 1) * lanes); ++i) {
        float* target = gradients.weight_gradient + i % channels * taps + i / channels;
        for (int64_t k = 0; k < outputs; ++k) target[k * inner] = sums[k * lanes + i % lanes];
      }
    }
  });
}

}  // namespace

void dense_stage_forward(const DenseStage& stage, const float* bias, float* y, double* sums) {
  const OutputRows rows(stage, kMostParts);
  const KernelTable& table = rows.table;
  const RowUnits& units = rows.units;
  const int64_t inner = stage.problem.inner_channels, outputs = stage.problem.out_channels;
  const int64_t lanes = table.lanes, k_padded = ceil_div(outputs, table.tile_columns) * table.tile_columns;
  const Operands operands = float_operands(table, inner, outputs, stage.rounds);
  const int64_t weight_floats = k_padded / table.tile_columns * weight_block_floats(table, operands, inner);
  // As in the pointwise stage.
  const bool in_l2 = operands == Operands::kPieces || weight_floats * kFloatBytes > l2_cache_bytes() / 2;
  const int64_t budget = in_l2 ? l2_cache_bytes() / 4 : l1_cache_bytes() / 2;
  const int64_t tile = panel_pixels(table, operands, budget / (rows.inner_blocks * lanes * kFloatBytes));
  Layout layout;
  const int64_t weights_at = layout.add(weight_floats), bias_at = layout.add(k_padded);
  const int64_t sums_at = layout.add_doubles(units.parts * 2 * k_padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  pack_pointwise_blocks(table, stage.weight, inner, outputs, memory + weights_at, operands);
  float* packed_bias = memory + bias_at;
  std::fill_n(packed_bias, k_padded, 0.0f);
  if (bias != nullptr) std::copy_n(bias, outputs, packed_bias);
  auto* part_sums = reinterpret_cast<double*>(memory + sums_at);
  const bool stream = streams(y, units.images * units.rows * rows.width(), outputs, outputs, kTrainingStreamBytes);
  parallel_parts(units.parts, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * rows.inner_blocks * lanes));
    float* input_rows = rows.rows_memory();
    for (int64_t part = begin; part < end; ++part) {
      double* own = part_sums + part * 2 * k_padded;
      std::fill_n(own, 2 * k_padded, 0.0);
      const Range range = units.units_of(part);
      for (int64_t unit = range.begin; unit < range.end; ++unit) {
        rows.fill(unit, input_rows);
        const Prefetch next = {{unit + 1 < units.count() ? rows.under(unit + 1) : MemoryRange{nullptr, 0}}};
        rows.for_tiles(unit, tile, [&](int64_t first, int64_t last, int64_t index, int64_t count) {
          rows.patches.gather(table, input_rows, first, last - first, panel);
          table.pointwise_stage_tile({last_panel_operand(table, operands, panel, inner, last - first), inner,
                                      last - first, outputs, memory + weights_at, packed_bias,
                                      y + (rows.first_pixel(unit) + first) * outputs, outputs, own, k_padded, stream,
                                      share_of(next, index, count), operands});
        });
      }
    }
    table.finish_streams();
  });
  add_moments(part_sums, units.parts, k_padded, outputs, sums, outputs);
}

void dense_stage_backward(const DenseStage& stage, const DenseStageGradients& gradients) {
  if (gradients.weight_gradient != nullptr) weight_gradient(stage, gradients);
  if (gradients.x_gradient != nullptr) DenseInputGradient(stage, gradients).run();
}

}  // namespace dwsep
