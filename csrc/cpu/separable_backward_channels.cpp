#include "cpu/separable_backward_channels.h"

#include <algorithm>
#include <vector>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/layout.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace dwsep {

// What a thread needs for one group.
struct SeparableBackwardChannels::Memory {
  float* weights;  // the group's column blocks
  float* product;
  float* planes;  // [image][block of the group]
  float* sums;    // of the pointwise weight's gradient, [block of the group][k][lane]
  float* tile;

  static int64_t column_blocks(const SeparableBackwardPlan& plan) { return plan.planes.group / plan.vectors; }

  Memory(const SeparableBackwardPlan& plan, int64_t pixels) {
    Layout layout;
    const int64_t weights_at = layout.add(column_blocks(plan) * plan.transposed_block_floats());
    const int64_t product_at = layout.add(plan.product_floats(pixels));
    const int64_t planes_at = layout.add(plan.problem.batch * plan.planes.group * plan.planes.g_plane);
    const int64_t sums_at = layout.add(plan.planes.group * plan.k_padded() * plan.planes.lanes);
    const int64_t tile_at = layout.add(BackwardTile::floats_without_gradient(plan.planes));
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(layout.size()));
    weights = memory + weights_at;
    product = memory + product_at;
    planes = memory + planes_at;
    sums = memory + sums_at;
    tile = memory + tile_at;
  }
};

void SeparableBackwardChannels::run(float* depthwise_sums) const {
  const bool packs = plan_.wants_below() && plan_.operands != Operands::kFloats;
  Layout layout;
  const int64_t panels_at = layout.add(plan_.panel_floats(pixels()));
  const int64_t operand_at = layout.add(
      packs ? panel_operand_floats(plan_.planes.table, plan_.operands, plan_.problem.out_channels, pixels()) : 0);
  float* memory = scratch(Scratch::kRows, static_cast<std::size_t>(layout.size()));
  const int64_t block_stride = pixels() * plan_.planes.lanes;
  const RowPanels panels = {pixels(), memory + panels_at, memory + panels_at + plan_.k_blocks * block_stride};
  gather(panels);
  write_bias(panels);
  const float* operand = packs ? memory + operand_at : panels.gradient;
  if (packs) {
    pack_panel_operand(plan_.planes.table, plan_.operands, panels.gradient, block_stride, plan_.problem.out_channels,
                       pixels(), memory + operand_at);
  }
  parallel_parts(plan_.planes.groups(), [&](int64_t begin, int64_t end) {
    const Memory own(plan_, pixels());
    if (plan_.wants_below()) rows_.clear_margins(own.planes, plan_.problem.batch * plan_.planes.group);
    for (int64_t group = begin; group < end; ++group) run_group(panels, operand, group, own, depthwise_sums);
    plan_.planes.table.finish_streams();
  });
}

// The panels of all pixels, a few rows a thread at a time.
void SeparableBackwardChannels::gather(const RowPanels& panels) const {
  constexpr int64_t kRows = 2;  // which the depthwise kernel computes together
  const int64_t width = plan_.problem.output[kWidth], lanes = plan_.planes.lanes;
  parallel_parts(ceil_div(rows(), kRows), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const Tile tile = {part * kRows, std::min((part + 1) * kRows, rows()), 0, width, 0, 1};
      const int64_t at = tile.row_begin * width * lanes;
      rows_.gather(tile, panels.gradient + at, panels.depthwise + at, panels.pixels * lanes);
    }
  });
}

void SeparableBackwardChannels::write_bias(const RowPanels& panels) const {
  if (plan_.tensors.pointwise_bias_gradient == nullptr) return;
  constexpr int64_t kPixels = 4096;  // of a vector each, that are worth a thread
  std::vector<float> sums(static_cast<std::size_t>(plan_.k_padded()), 0.0f);
  parallel_for(plan_.k_blocks, std::max<int64_t>(1, kPixels / panels.pixels),
               [&](int64_t begin, int64_t end) { rows_.add_bias(panels, begin, end, sums.data()); });
  plan_.write_pointwise_bias(sums.data(), 1);
}

void SeparableBackwardChannels::run_group(const RowPanels& panels, const float* operand, int64_t group,
                                          const Memory& memory, float* depthwise_sums) const {
  const int64_t first = group * plan_.planes.group, stop = std::min(first + plan_.planes.group, plan_.inner_blocks);
  const Tile tile = {0, rows(), 0, plan_.problem.output[kWidth], 0, 1};
  if (plan_.wants_below()) {
    PanelProduct job = rows_.product_of(panels, memory.weights, memory.product);
    job.panel = operand;
    job.operands = plan_.operands;
    const PlaneTarget target = {memory.planes, first, plan_.planes.group * plan_.planes.g_plane, 0};
    const int64_t first_block = first / plan_.vectors, blocks = ceil_div(stop, plan_.vectors) - first_block;
    plan_.pack_column_blocks(weights_, add_depthwise_, first_block, blocks, memory.weights);
    for (int64_t block = 0; block < blocks; ++block)
      rows_.multiply(panels, tile, job, block, first_block + block, target);
  }
  if (plan_.tensors.pointwise_gradient != nullptr) {
    rows_.activate(panels, first, stop);
    rows_.add_products(panels, first, stop, memory.sums, true, {});
    plan_.write_pointwise_vectors(memory.sums, first, stop);
  }
  if (!plan_.wants_below()) return;
  BackwardTile below(plan_.planes, plan_.depthwise_tensors, Activation::kNone, memory.tile, depthwise_sums);
  if (plan_.stream) below.set_stream();
  for (int64_t image = 0; image < plan_.problem.batch; ++image) {
    for (int64_t t = 0; t < plan_.planes.tile_count(); ++t)
      below.run_on(image, t, first, memory.planes + image * plan_.planes.group * plan_.planes.g_plane);
  }
}

}  // namespace dwsep
