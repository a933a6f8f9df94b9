// A 1x1 convolution whose input goes through a norm and an activation while it is loaded, and its gradients.
#pragma once

#include <cstdint>
#include <span>

#include "cpu/conv_problem.h"

namespace dwsep {

// Channels-last floats: x (pixels, channels), y (pixels, out_channels), both of which may be some of the channels of
// larger tensors, at which all pointers then point. Two rows per channel are as far apart as two pixels.
struct PointwiseStage {
  int64_t pixels;
  int64_t channels;
  int64_t out_channels;
  const float* x;
  const float* scale;  // (channels), or null for none
  const float* shift;
  Activation activation;
  const float* weight;  // (out_channels, channels)
  int64_t x_stride;     // floats from a pixel to the next
  int64_t y_stride;
  // (images, channels): times the activation. Of a gated stage, x's gradient is that of the product.
  const float* gate = nullptr;
  int64_t image_pixels = 0;  // of an image, with a gate alone
  bool rounds = false;       // whether products may take operands rounded to bfloat16
};

// `sums` (2, out_channels): of y and of its squares.
void pointwise_stage_forward(const PointwiseStage& stage, const float* bias, float* y, double* sums);

struct PointwiseStageOutputs {
  const float* bias;  // (out_channels), or null
  float* y;
  double* sums;
};

// Of stages which share their tensors: their channels follow each other, and are all that a pixel has.
void pointwise_stages_forward(std::span<const PointwiseStage> stages, std::span<const PointwiseStageOutputs> outputs);

// Null where a result is not wanted.
struct PointwiseStageGradients {
  const float* gradient;    // (pixels, out_channels)
  const float* y;           // the same, and read with a correction alone
  const float* correction;  // (2, out_channels), or null
  float* x_gradient;
  double* affine_gradient;  // (2, channels)
  float* weight_gradient;
  float* bias_gradient;
  float* gate_gradient = nullptr;  // (images, channels), with a gate
};

void pointwise_stage_backward(const PointwiseStage& stage, const PointwiseStageGradients& gradients);

// As pointwise_stages_forward.
void pointwise_stages_backward(std::span<const PointwiseStage> stages,
                               std::span<const PointwiseStageGradients> gradients);

}  // namespace dwsep
