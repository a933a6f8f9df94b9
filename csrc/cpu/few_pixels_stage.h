// The pointwise stage of a handful of pixels: what comes behind a pooling.
#pragma once

#include "cpu/pointwise_stage_kernel.h"

namespace dwsep {

// Whether a stage is one.
bool has_few_pixels(const PointwiseStage& stage);

void few_pixels_stage_forward(const PointwiseStage& stage, const float* bias, float* y, double* sums);
void few_pixels_stage_backward(const PointwiseStage& stage, const PointwiseStageGradients& gradients);

}  // namespace dwsep
