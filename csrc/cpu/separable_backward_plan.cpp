#include "cpu/separable_backward_plan.h"

#include <algorithm>
#include <vector>

#include "cpu/cache_size.h"
#include "cpu/channels_last.h"
#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/streaming.h"

namespace dwsep {

SeparableBackwardPlan::SeparableBackwardPlan(const ConvProblem& of, Activation between,
                                             const SeparableBackwardTensors& all)
    : problem(of),
      tensors(all),
      activation(between),
      planes(kernels(), of, TilePurpose::kBackwardWhole, true),
      rows_per_image(of.output[kDepth] * of.output[kHeight]) {
  const int64_t lanes = planes.lanes;
  k_blocks = ceil_div(problem.out_channels, lanes);
  inner_blocks = planes.blocks * problem.multiplier;
  column_blocks = ceil_div(inner_blocks * lanes, planes.table.tile_columns);
  vectors = planes.table.tile_columns / lanes;
  operands = float_operands(planes.table, problem.out_channels, inner_blocks * lanes, rounds());
  depthwise_tensors = {nullptr,
                       {},
                       tensors.x,
                       channels_last_strides(problem.input, problem.channels),
                       tensors.x_gradient,
                       channels_last_strides(problem.input, problem.channels),
                       tensors.depthwise_gradient,
                       tensors.depthwise_bias_gradient};
  by_channels = takes_channels();
  const int64_t bytes_of_pixel = (k_blocks + inner_blocks) * lanes * static_cast<int64_t>(sizeof(float));
  const int64_t fit = l2_cache_bytes() / 2 / bytes_of_pixel;
  tile_pixels = panel_pixels(planes.table, operands, fit);
  const int64_t x_pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
  stream = problem.multiplier == 1 &&
           streams_from_planes(problem.element_type, tensors.x_gradient, depthwise_tensors.x_gradient_strides, x_pixels,
                               problem.channels, kTrainingStreamBytes);
  const int64_t elements =
      2 * x_pixels * problem.channels + problem.batch * rows_per_image * problem.output[kWidth] * problem.out_channels;
  ask = elements * planes.element_size > kCachedBytes;
  // Of small images several, so that the pointwise gradient's sums are not read and written for a few pixels.
  const int64_t pixels = std::max<int64_t>(1, rows_per_image * problem.output[kWidth]);
  images_together = std::max<int64_t>(1, tile_pixels / pixels);
}

// Groups of channels are enough for the threads, and the output's gradients of all pixels stay in the last cache, from
// which every group reads them. Of few images there is little else to give the threads, and groups may be smaller; of
// more the threads' own sums would have to be larger than what the pixels are.
bool SeparableBackwardPlan::takes_channels() {
  constexpr int64_t kLeastGroups = 8, kPanelBytes = int64_t{4} << 20, kFewImages = 3;
  const int64_t pixels = problem.batch * rows_per_image * problem.output[kWidth];
  if (pixels < 1 || problem.multiplier != 1) return false;
  if (pixels * k_padded() * static_cast<int64_t>(sizeof(float)) > kPanelBytes) return false;
  const bool few = problem.batch <= kFewImages;
  if (!few && pixels > problem.channels) return false;
  const int64_t half = planes.group / 2, smaller = half % vectors == 0 && half > 0 ? half : planes.group;
  const int64_t group = !few || planes.groups() >= kLeastGroups ? planes.group : smaller;
  if (group % vectors != 0 || ceil_div(planes.blocks, group) < kLeastGroups) return false;
  planes.group = group;
  return true;
}

void SeparableBackwardPlan::pack_depthwise(const WeightSources& weights, float* memory) {
  planes.pack(weights, memory);
  panel_weights = memory + planes.weight_floats();
  pack_panel_weights(memory + planes.weight_floats());
}

void SeparableBackwardPlan::pack(const WeightSources& weights, bool add_depthwise, float* memory) {
  pack_depthwise(weights, memory);
  memory += depthwise_floats();
  transposed = memory;
  if (!wants_below()) return;
  const int64_t grain = std::max<int64_t>(1, 32768 / (k_padded() * planes.table.tile_columns));
  parallel_for(column_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      pack_column_blocks(weights, add_depthwise, block, 1, memory + block * transposed_block_floats());
  });
}

void SeparableBackwardPlan::pack_column_blocks(const WeightSources& weights, bool add_depthwise, int64_t first,
                                               int64_t count, float* memory) const {
  const int64_t columns = planes.table.tile_columns, inner = problem.inner_channels;
  const bool whole = problem.multiplier == 1 && (first + count) * columns <= inner;
  const auto* floats = static_cast<const float*>(weights.pointwise);
  if (problem.element_type == ElementType::kFloat32 && operands == Operands::kFloats && whole && !add_depthwise) {
    // A row's columns of all blocks at once, rows being far apart; those some rows ahead are asked for.
    constexpr int64_t kAhead = 16, kLine = 16;
    for (int64_t k = 0; k < problem.out_channels; ++k) {
      const float* row = floats + k * inner + first * columns;
      for (int64_t line = 0; k + kAhead < problem.out_channels && line < count * columns; line += kLine)
        __builtin_prefetch(row + kAhead * inner + line);
      for (int64_t block = 0; block < count; ++block)
        std::copy_n(row + block * columns, columns, memory + block * transposed_block_floats() + k * columns);
    }
    for (int64_t block = 0; block < count; ++block) {
      std::fill_n(memory + block * transposed_block_floats() + problem.out_channels * columns,
                  (k_padded() - problem.out_channels) * columns, 0.0f);
    }
    return;
  }
  for (int64_t block = 0; block < count; ++block) {
    float* target = memory + block * transposed_block_floats();
    if (problem.element_type == ElementType::kFloat32) {
      pack_transposed_block(floats, add_depthwise, first + block, target);
    } else {
      pack_transposed_block(static_cast<const uint16_t*>(weights.pointwise), add_depthwise, first + block, target);
    }
  }
}

template <class T>
void SeparableBackwardPlan::pack_transposed_block(const T* pointwise, bool add_depthwise, int64_t block,
                                                  float* packed) const {
  const int64_t columns = planes.table.tile_columns, inner = problem.inner_channels;
  const bool plain = operands == Operands::kFloats;
  float* target = plain ? packed : scratch(Scratch::kBlock, static_cast<std::size_t>(k_padded() * columns));
  std::fill_n(target, k_padded() * columns, 0.0f);
  int64_t run = 0;
  for (int64_t column = 0; column < columns; column += run) {
    // Channels that follow each other are copied as one.
    const int64_t channel = inner_channel(block * columns + column);
    run = 1;
    if (channel < 0) continue;
    while (column + run < columns && inner_channel(block * columns + column + run) == channel + run) ++run;
    for (int64_t k = 0; k < problem.out_channels; ++k) {
      const T* source = pointwise + k * inner + channel;
      float* out = target + k * columns + column;
      for (int64_t i = 0; i < run; ++i) out[i] = as_float(source[i]);
      if (add_depthwise && k >= channel && k < channel + run) out[k - channel] += 1.0f;
    }
  }
  if (!plain) pack_block_operand(planes.table, operands, target, k_padded(), packed);
}

// planes.weights has the multiples of an input block next to each other; a panel takes all input blocks of one
// multiple.
void SeparableBackwardPlan::pack_panel_weights(float* target) const {
  const int64_t multiplier = problem.multiplier, block_floats = planes.taps * planes.lanes;
  float* bias = target + inner_blocks * block_floats;
  for (int64_t m = 0; m < multiplier; ++m) {
    for (int64_t block = 0; block < planes.blocks; ++block) {
      const int64_t from = block * multiplier + m, to = m * planes.blocks + block;
      std::copy_n(planes.weights + from * block_floats, block_floats, target + to * block_floats);
      std::copy_n(planes.bias + from * planes.lanes, planes.lanes, bias + to * planes.lanes);
    }
  }
}

void SeparableBackwardPlan::write_pointwise_gradients(const float* sums, int64_t parts) const {
  const int64_t size = part_floats(), lanes = planes.lanes, inner = problem.inner_channels;
  const bool plain = problem.multiplier == 1 && problem.element_type == ElementType::kFloat32;
  // A vector of channels lies together in the sums, an output's in the gradient: a few outputs of every vector at a
  // time, so that either side is read and written a few cache lines at a stretch.
  constexpr int64_t kOutputs = 8;
  const int64_t groups = tensors.pointwise_gradient != nullptr ? ceil_div(problem.out_channels, kOutputs) : 0;
  const int64_t grain = std::max<int64_t>(1, 16384 / (kOutputs * inner));
  parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<std::size_t>(lanes));
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kOutputs, stop = std::min(first + kOutputs, problem.out_channels);
      for (int64_t vector = 0; vector < inner_blocks; ++vector) {
        const int64_t valid = std::min(lanes, problem.channels - vector % planes.blocks * lanes);
        for (int64_t k = first; k < stop; ++k) {
          const float* source = sums + (vector * k_padded() + k) * lanes;
          const int64_t at = k * inner + inner_channel(vector * lanes);
          if (plain) {
            sum_of_parts(source, parts, size, valid, static_cast<float*>(tensors.pointwise_gradient) + at);
            continue;
          }
          sum_of_parts(source, parts, size, valid, sum.data());
          for (int64_t lane = 0; lane < valid; ++lane) {
            store_element(tensors.pointwise_gradient, problem.element_type, at + lane * problem.multiplier,
                          sum[static_cast<std::size_t>(lane)]);
          }
        }
      }
    }
  });
  write_pointwise_bias(sums + pointwise_sums(), parts);
}

void SeparableBackwardPlan::write_pointwise_vectors(const float* sums, int64_t begin, int64_t end) const {
  const int64_t channel = begin * planes.lanes, inner = problem.channels;
  const bool stream = streams(problem.element_type, tensors.pointwise_gradient, problem.out_channels, inner, inner,
                              kTrainingStreamBytes);
  const RowCopy copy = {
      problem.element_type,      inner, 1, problem.out_channels, std::min(end * planes.lanes, inner) - channel,
      k_padded() * planes.lanes, stream};
  planes.table.scatter_row(copy, sums, advanced(tensors.pointwise_gradient, channel * planes.element_size));
}

void SeparableBackwardPlan::write_pointwise_bias(const float* sums, int64_t parts) const {
  for (int64_t k = 0; tensors.pointwise_bias_gradient != nullptr && k < problem.out_channels; ++k) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * part_floats() + k];
    store_element(tensors.pointwise_bias_gradient, problem.element_type, k, sum);
  }
}

}  // namespace dwsep
