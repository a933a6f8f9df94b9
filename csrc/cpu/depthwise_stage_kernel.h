// A depthwise convolution whose input goes through a norm and an activation while it is loaded.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"
#include "cpu/plane_tile.h"

namespace dwsep {

// Channels-last floats, multiplier 1. The channels may be some of those of larger tensors of the same number of
// channels, at which all pointers then point. `sums`: of y and of its squares, two rows as long as a pixel.
void depthwise_stage_forward(const ConvProblem& problem, const WeightSources& weights, const StageLoad& load,
                             const float* x, const Strides& x_strides, float* y, const Strides& y_strides,
                             double* sums);

}  // namespace dwsep
