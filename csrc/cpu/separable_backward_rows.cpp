#include "cpu/separable_backward_rows.h"

#include <algorithm>

#include "cpu/panel_operands.h"
#include "cpu/plane_tile.h"
#include "cpu/tile_ahead.h"
#include "cpu/tiling.h"

namespace dwsep {

void SeparableBackwardRows::run(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums,
                                bool first) const {
  ConvProblem band = plan_.problem;
  band.batch = 1;
  band.output[kDepth] = 1;
  band.output[kHeight] = row_end - row_begin;
  const Tiling tiling(band, plan_.tile_pixels, 1, 1);
  float* product = panels + plan_.panel_floats(plan_.tile_pixels);
  for (int64_t i = 0; i < tiling.count(); ++i) {
    Tile tile = tiling[i];
    tile.row_begin += row_begin;
    tile.row_end += row_begin;
    const RowPanels filled = fill_tile(tile, row_begin / plan_.rows_per_image, panels, product, planes);
    add_bias(filled, 0, plan_.k_blocks, sums + plan_.pointwise_sums());
    add_products(filled, 0, plan_.inner_blocks, sums, first && i == 0,
                 next_pixels(tile, shares_below(), shares(), shares()));
  }
}

RowPanels SeparableBackwardRows::fill_tile(const Tile& tile, int64_t first_image, float* panels, float* product,
                                           float* planes) const {
  const int64_t lanes = plan_.planes.lanes, columns = tile.column_end - tile.column_begin;
  const int64_t pixels = (tile.row_end - tile.row_begin) * columns;
  const RowPanels filled = {pixels, panels, panels + plan_.k_blocks * pixels * lanes};
  gather(tile, filled.gradient, filled.depthwise, pixels * lanes);
  if (plan_.wants_below()) {
    PanelProduct job = product_of(filled, plan_.transposed, product);
    job.panel = panel_operand(plan_.planes.table, plan_.operands, job.panel, plan_.problem.out_channels, pixels);
    job.operands = plan_.operands;
    const PlaneTarget target = {planes, 0, plan_.planes_of_image(), first_image};
    for (int64_t block = 0; block < plan_.column_blocks; ++block) {
      job.prefetch = next_pixels(tile, block, block + 1, shares());
      multiply(filled, tile, job, block, block, target);
    }
  }
  activate(filled, 0, plan_.inner_blocks);
  return filled;
}

void SeparableBackwardRows::gather(const Tile& tile, float* gradient, float* depthwise, int64_t block_stride) const {
  const int64_t pixels = (tile.row_end - tile.row_begin) * (tile.column_end - tile.column_begin);
  // A tile's pixels are consecutive in the output.
  const int64_t first_pixel = tile.row_begin * plan_.problem.output[kWidth] + tile.column_begin;
  const RowCopy copy = {
      plan_.problem.element_type, plan_.problem.out_channels, 1, pixels, plan_.problem.out_channels, block_stride};
  plan_.planes.table.gather_row(
      copy, advanced(plan_.tensors.gradient, first_pixel * plan_.problem.out_channels * plan_.planes.element_size),
      gradient);
  if (plan_.tensors.pointwise_gradient != nullptr || (activated() && plan_.wants_below())) {
    const float* bias = plan_.panel_weights + plan_.inner_blocks * plan_.planes.taps * plan_.planes.lanes;
    plan_.planes.table.depthwise_panel(plan_.problem, {plan_.panel_weights, bias, nullptr, nullptr}, Activation::kNone,
                                       plan_.tensors.x, tile, depthwise, block_stride);
  }
}

PanelProduct SeparableBackwardRows::product_of(const RowPanels& panels, const float* weights, float* product) const {
  return {panels.gradient,
          plan_.k_blocks,
          panels.pixels,
          weights,
          product,
          plan_.problem.out_channels,
          plan_.planes.table.tile_columns,
          {}};
}

void SeparableBackwardRows::multiply(const RowPanels& panels, const Tile& tile, const PanelProduct& job,
                                     int64_t weight_block, int64_t block, const PlaneTarget& target) const {
  plan_.planes.table.multiply_panel(job, weight_block);
  const int64_t floats = panels.pixels * plan_.planes.lanes;
  const int64_t stop = std::min(plan_.vectors, plan_.inner_blocks - block * plan_.vectors);
  for (int64_t vector = 0; vector < stop; ++vector) {
    const int64_t place = block * plan_.vectors + vector;
    float* source = job.target + vector * floats;
    if (activated()) {
      plan_.planes.table.activation_gradient_row(plan_.activation, panels.depthwise + place * floats, source,
                                                 panels.pixels);
    }
    const int64_t plane = place % plan_.planes.blocks * plan_.problem.multiplier + place / plan_.planes.blocks;
    copy_to_plane(tile, source, plane, target);
  }
}

void SeparableBackwardRows::activate(const RowPanels& panels, int64_t begin, int64_t end) const {
  if (!activated() || plan_.tensors.pointwise_gradient == nullptr) return;
  plan_.planes.table.activate_row(plan_.activation, panels.depthwise + begin * panels.pixels * plan_.planes.lanes,
                                  (end - begin) * panels.pixels);
}

void SeparableBackwardRows::add_products(const RowPanels& panels, int64_t begin, int64_t end, float* sums, bool first,
                                         const Prefetch& prefetch) const {
  if (plan_.tensors.pointwise_gradient == nullptr) return;
  const int64_t lanes = plan_.planes.lanes, stride = plan_.k_padded() * lanes;
  plan_.planes.table.outer_product(
      {panels.gradient, plan_.k_padded(), panels.depthwise + begin * panels.pixels * lanes, end - begin, panels.pixels,
       sums, stride, first, prefetch,
       outer_product_memory(plan_.planes.table, plan_.k_padded(), end - begin, panels.pixels, plan_.rounds()),
       plan_.rounds(), end == plan_.inner_blocks && ends_in_half_a_vector(plan_.planes.table, plan_.problem.channels)});
}

void SeparableBackwardRows::add_bias(const RowPanels& panels, int64_t begin, int64_t end, float* sums) const {
  if (plan_.tensors.pointwise_bias_gradient == nullptr) return;
  const int64_t lanes = plan_.planes.lanes;
  for (int64_t block = begin; block < end; ++block) {
    plan_.planes.table.sum_row(panels.gradient + block * panels.pixels * lanes, panels.pixels, sums + block * lanes);
  }
}

// Of what the tile behind `tile` reads, parts [begin, end) of `parts`: as many pixels more of the output's gradient
// and, behind whole rows, the input rows that only they meet.
Prefetch SeparableBackwardRows::next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t parts) const {
  if (!plan_.ask) return {};
  const ConvProblem& problem = plan_.problem;
  const int64_t columns = problem.output[kWidth], outputs = problem.out_channels, size = plan_.planes.element_size;
  const int64_t pixels = (tile.row_end - tile.row_begin) * (tile.column_end - tile.column_begin);
  const bool whole = tile.column_end == columns;
  const int64_t next = whole ? tile.row_end * columns : tile.row_begin * columns + tile.column_end;
  const int64_t all = problem.batch * plan_.rows_per_image * columns * outputs;
  const Share share = {begin, end, parts};
  return {{share_of(plan_.tensors.gradient, next * outputs, pixels * outputs, all, size, share),
           input_rows_behind(problem, tile, plan_.tensors.x, size, share),
           {}}};
}

// A tile's pixels of one block into its plane of their image, whose rows are longer.
void SeparableBackwardRows::copy_to_plane(const Tile& tile, const float* source, int64_t plane,
                                          const PlaneTarget& target) const {
  const Range &depth = plan_.planes.tiles[kDepth][0].gradient, &height = plan_.planes.tiles[kHeight][0].gradient;
  const Range& width = plan_.planes.tiles[kWidth][0].gradient;
  const int64_t floats = (tile.column_end - tile.column_begin) * plan_.planes.lanes;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row, source += floats) {
    const int64_t oh = row % plan_.problem.output[kHeight],
                  od = row / plan_.problem.output[kHeight] % plan_.problem.output[kDepth];
    const int64_t at =
        ((od - depth.begin) * height.size() + (oh - height.begin)) * width.size() + (tile.column_begin - width.begin);
    const int64_t image = row / plan_.rows_per_image - target.first_image;
    std::copy_n(source, floats,
                target.planes + image * target.image_stride + (plane - target.first) * plan_.planes.g_plane +
                    at * plan_.planes.lanes);
  }
}

void SeparableBackwardRows::clear_margins(float* planes, int64_t blocks) const {
  const AxisTile &td = plan_.planes.tiles[kDepth][0], &th = plan_.planes.tiles[kHeight][0],
                 &tw = plan_.planes.tiles[kWidth][0];
  const Range& range = tw.gradient;
  const int64_t begin = std::clamp<int64_t>(0, range.begin, range.end) - range.begin;
  const int64_t end = std::clamp(plan_.problem.output[kWidth], range.begin, range.end) - range.begin;
  const int64_t lanes = plan_.planes.lanes;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t row = 0; row < td.gradient.size() * th.gradient.size(); ++row) {
      float* first = planes + block * plan_.planes.g_plane + row * range.size() * lanes;
      std::fill_n(first, begin * lanes, 0.0f);
      std::fill_n(first + end * lanes, (range.size() - end) * lanes, 0.0f);
    }
  }
}

}  // namespace dwsep
