// What all of a separable backward pass shares: how it is cut, its weights in the order of the panels, and its results.
#pragma once

#include <cstdint>

#include "cpu/depthwise_backward_kernel.h"
#include "cpu/packing.h"
#include "cpu/plane_plan.h"
#include "cpu/separable_backward_kernel.h"

namespace dwsep {

struct SeparableBackwardPlan {
  const ConvProblem& problem;
  const SeparableBackwardTensors& tensors;
  Activation activation;  // between the factors
  PlanePlan planes;
  DepthwiseBackwardTensors depthwise_tensors;
  int64_t rows_per_image;
  int64_t k_blocks;       // of the output's channels, a vector each
  int64_t inner_blocks;   // of the depthwise output's, in the order [m][input block][lane]
  int64_t column_blocks;  // of the same, a micro-kernel's columns each
  int64_t vectors;        // of a column block
  Operands operands;      // of the product with the pointwise weight
  int64_t tile_pixels;    // at most
  int64_t images_together;
  bool by_channels;                      // a group of them after the other, see separable_backward_channels.h
  bool stream;                           // store the gradient of x past the caches
  bool ask;                              // for what comes next: it is not in a cache
  const float* transposed = nullptr;     // the pointwise weight [column block][k][column]
  const float* panel_weights = nullptr;  // the depthwise weight [m][input block][tap][lane], then its bias

  SeparableBackwardPlan(const ConvProblem& of, Activation between, const SeparableBackwardTensors& all);

  // As separate layers of that type do: between them a tensor of it would lie.
  bool rounds() const { return problem.element_type == ElementType::kBFloat16; }
  bool wants_below() const {
    return tensors.x_gradient != nullptr || tensors.depthwise_gradient != nullptr ||
           tensors.depthwise_bias_gradient != nullptr;
  }
  int64_t k_padded() const { return k_blocks * planes.lanes; }
  int64_t inner_padded() const { return inner_blocks * planes.lanes; }
  // The depthwise output's channel at a place in the order of the panels, or -1.
  int64_t inner_channel(int64_t place) const {
    const int64_t padded = planes.blocks * planes.lanes, channel = place % padded;
    const bool inside = place < inner_padded() && channel < problem.channels;
    return inside ? channel * problem.multiplier + place / padded : -1;
  }
  int64_t pointwise_sums() const { return tensors.pointwise_gradient != nullptr ? k_padded() * inner_padded() : 0; }
  int64_t planes_of_image() const { return inner_blocks * planes.g_plane; }
  // One part's sums: [k][c] of the pointwise weight, [k] of its bias.
  int64_t part_floats() const { return pointwise_sums() + k_padded(); }
  // The panels of so many pixels, and a column block of their product.
  int64_t panel_floats(int64_t pixels) const { return pixels * planes.lanes * (k_blocks + inner_blocks); }
  int64_t product_floats(int64_t pixels) const { return pixels * planes.lanes * vectors; }
  int64_t tile_floats() const { return panel_floats(tile_pixels) + product_floats(tile_pixels); }

  int64_t transposed_block_floats() const { return weight_block_floats(planes.table, operands, k_padded()); }
  int64_t depthwise_floats() const { return 2 * planes.weight_floats(); }
  int64_t packed_floats() const { return depthwise_floats() + column_blocks * transposed_block_floats(); }
  // Packs all weights into `memory`, packed_floats() long, which must outlive the plan; or the depthwise ones, and
  // some column blocks of the other, as `transposed` has them.
  void pack(const WeightSources& weights, bool add_depthwise, float* memory);
  void pack_depthwise(const WeightSources& weights, float* memory);
  void pack_column_blocks(const WeightSources& weights, bool add_depthwise, int64_t first, int64_t count,
                          float* memory) const;

  // Adds the sums of `parts` parts in their order.
  void write_pointwise_gradients(const float* sums, int64_t parts) const;
  // The same for vectors [begin, end) of channels of a multiplier of 1, from the sums of these alone; and for the bias.
  void write_pointwise_vectors(const float* sums, int64_t begin, int64_t end) const;
  void write_pointwise_bias(const float* sums, int64_t parts) const;

 private:
  bool takes_channels();
  template <class T>
  void pack_transposed_block(const T* pointwise, bool add_depthwise, int64_t block, float* packed) const;
  void pack_panel_weights(float* target) const;
};

}  // namespace dwsep
