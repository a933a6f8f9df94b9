#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"

namespace dwsep {

// What a separable backward pass reads and writes, all of one element type; images channels last and dense, parameters
// dense; gradients which are not wanted are null.
struct SeparableBackwardTensors {
  const void* gradient;  // of the pointwise output, before any activation
  const void* x;
  void* x_gradient;
  void* depthwise_gradient;
  void* pointwise_gradient;
  void* depthwise_bias_gradient;
  void* pointwise_bias_gradient;
};

// Gradients of pointwise(inner_activation(depthwise(x))), whose depthwise output is computed anew. With `add_depthwise`
// those of the sum of that and the depthwise output.
void separable_conv_backward(ConvProblem problem, const WeightSources& weights, Activation inner_activation,
                             bool add_depthwise, const SeparableBackwardTensors& tensors);

}  // namespace dwsep
