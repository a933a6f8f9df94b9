#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// What a backward pass reads and writes; gradients which are not wanted are null. Parameters' gradients are dense.
struct DepthwiseBackwardTensors {
  const void* gradient;  // (N, C * M, *out)
  Strides gradient_strides;
  const void* x;
  Strides x_strides;
  void* x_gradient;
  Strides x_gradient_strides;
  void* weight_gradient;  // (C * M, taps)
  void* bias_gradient;    // (C * M)
};

// What a stage of training adds: tensors are channels-last floats, the multiplier is 1. The channels may be some of
// those of larger tensors, at which all pointers point; rows of pairs per channel are then as long as those' pixels.
struct StageBackward {
  const float* scale;  // of x, (C), or null
  const float* shift;
  Activation activation;    // of x
  const float* y;           // the raw output, read with a correction alone
  const float* correction;  // (2, C), or null
  double* affine_gradient;  // (2, C), or null
  int64_t row_length;       // from the first of two values per channel to the second, and from a pixel to the next
};

void depthwise_stage_backward(const ConvProblem& problem, const WeightSources& weights, const StageBackward& stage,
                              const DepthwiseBackwardTensors& tensors);

void depthwise_conv_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const DepthwiseBackwardTensors& tensors);

}  // namespace dwsep
