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

void SeparableBackwardPlan::pack(const WeightSources& weights, bool add_depthwise, float* memory) {
  planes.pack(weights, memory);
  memory += planes.weight_floats();
  pack_panel_weights(memory);
  panel_weights = memory;
  memory += planes.weight_floats();
  transposed = memory;
  if (!wants_below()) return;
  if (problem.element_type == ElementType::kFloat32 && problem.multiplier == 1 && !add_depthwise) {
    pack_pointwise_transposed(planes.table, static_cast<const float*>(weights.pointwise), problem.inner_channels,
                              problem.out_channels, memory, operands);
  } else if (problem.element_type == ElementType::kFloat32) {
    pack_transposed(static_cast<const float*>(weights.pointwise), add_depthwise, memory);
  } else {
    pack_transposed(static_cast<const uint16_t*>(weights.pointwise), add_depthwise, memory);
  }
}

template <class T>
void SeparableBackwardPlan::pack_transposed(const T* pointwise, bool add_depthwise, float* memory) const {
  const int64_t columns = planes.table.tile_columns, inner = problem.inner_channels;
  const int64_t grain = std::max<int64_t>(1, 32768 / (k_padded() * columns));
  parallel_for(column_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const bool plain = operands == Operands::kFloats;
      float* packed = memory + block * transposed_block_floats();
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
  });
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
  for (int64_t k = 0; tensors.pointwise_bias_gradient != nullptr && k < problem.out_channels; ++k) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * size + pointwise_sums() + k];
    store_element(tensors.pointwise_bias_gradient, problem.element_type, k, sum);
  }
}

}  // namespace dwsep
