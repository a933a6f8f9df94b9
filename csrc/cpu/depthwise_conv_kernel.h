#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"

namespace dwsep {

// out (N, D, H, W, C * M) = activation(depthwise(x)).
void depthwise_conv_forward(ConvProblem problem, const WeightSources& weights, Activation activation, const void* x,
                            void* out);

}  // namespace dwsep
