// A 1x1 convolution that widens its input, and the depthwise or separable convolution behind it: bands of rows between
// the two live in a thread's own cache.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"

namespace dwsep {

// Channels-last floats: x (N, H, W, channels), out as the problem says.
struct ExpandedConv {
  ConvProblem problem;  // of what follows: its channels are the wide ones
  int64_t channels;
  const float* x;
  const float* expansion;  // as pack_pointwise leaves a weight (problem.channels, channels)
  Activation expansion_activation;
  PackedWeights weights;
  SeparableOptions options;
  bool separable;  // whether a pointwise factor follows the depthwise one, whose activation is else options.activation
  float* out;
};

void expanded_conv_forward(const ExpandedConv& conv);

}  // namespace dwsep
