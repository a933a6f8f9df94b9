// A depthwise or separable convolution, by way of planes, perhaps with a 1x1 convolution before it that widens its
// input: what lies between the factors lives in a thread's own cache.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"

namespace dwsep {

// Channels-last floats: x (N, H, W, channels), out as the problem says. Each may be some of the channels of something
// wider, but for the output of a separable convolution.
struct ExpandedConv {
  ConvProblem problem;  // of what follows: its channels are the wide ones
  int64_t channels;
  const float* x;
  const float* expansion;  // as pack_pointwise leaves a weight (problem.channels, channels); null for none
  Activation expansion_activation;
  PackedWeights weights;
  SeparableOptions options;
  bool separable;  // whether a pointwise factor follows the depthwise one, whose activation is else options.activation
  float* out;
  float* means = nullptr;  // (N, channels of the output) over each image's pixels; null where nobody asks
  bool pairs = false;      // how the expansion's weights were packed; options.pairs says it of the pointwise factor's
  int64_t x_stride = 0;    // floats from a pixel of x to the next; 0 for its channels, and so on
  int64_t out_stride = 0;  // of a depthwise convolution's output
  int64_t means_stride = 0;
};

// Whether a separable convolution without an expansion is better done so: an image's rows do not go round, and its
// channels do.
bool planes_balance(const ConvProblem& problem);

void expanded_conv_forward(ExpandedConv conv);

}  // namespace dwsep
