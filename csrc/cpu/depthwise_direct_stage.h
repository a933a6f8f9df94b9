// The way back through a depthwise stage with both gradients from one reading: of the raw input a few rows and channel
// blocks at a time go through norm and activation into the first cache, where the gradients meet them.
#pragma once

#include "cpu/depthwise_rows.h"

namespace dwsep {

// Whether it is for a problem, and faster than rows of planes for each of the two.
bool direct_stage_pays(const RowsPlan& plan, const DepthwiseBackwardTensors& tensors, const GradientRows* taker);

// As depthwise_rows_backward.
void depthwise_direct_stage(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                            const DepthwiseBackwardTensors& tensors, const GradientRows* taker);

}  // namespace dwsep
