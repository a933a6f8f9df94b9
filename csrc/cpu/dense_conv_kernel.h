// A dense 2d convolution with packed weights, for the few of a separable network: stems of three channels above all.
#pragma once

#include "cpu/conv_problem.h"

namespace dwsep {

// Channels-last floats: x (N, H, W, C), out and residual, if any, (N, H', W', K).
struct DenseConv {
  ConvProblem problem;  // inner_channels: C * kernel height * kernel width
  const float* x;
  const float* packed;  // as pack_pointwise leaves a weight (K, kernel height * kernel width * C)
  Activation activation;
  const float* residual;
  float* out;
  bool pairs = false;  // how the weights were packed
};

void dense_conv_forward(const DenseConv& conv);

}  // namespace dwsep
