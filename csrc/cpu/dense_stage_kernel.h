// A dense 2d convolution whose input goes through a norm and an activation while it is loaded, and its gradients.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/stage_load.h"

namespace dwsep {

// Channels-last floats: x (N, H, W, C), y (N, H', W', K).
struct DenseStage {
  ConvProblem problem;  // inner_channels: kernel height * kernel width * C
  const float* x;
  StageLoad load;
  const float* weight;  // (K, kernel height, kernel width, C)
  bool rounds = false;  // whether products may take operands rounded to bfloat16
};

// `sums` (2, K): of y and of its squares.
void dense_stage_forward(const DenseStage& stage, const float* bias, float* y, double* sums);

// Null where a result is not wanted.
struct DenseStageGradients {
  const float* gradient;
  const float* y;           // read with a correction alone
  const float* correction;  // (2, K), or null
  float* x_gradient;
  double* affine_gradient;  // (2, C)
  float* weight_gradient;   // (K, C, kernel height, kernel width)
  float* bias_gradient;
};

void dense_stage_backward(const DenseStage& stage, const DenseStageGradients& gradients);

}  // namespace dwsep
