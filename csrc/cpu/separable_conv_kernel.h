#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"

namespace dwsep {

// out (N, D, H, W, K) = activation(pointwise(inner_activation(depthwise(x)))), with the depthwise output only ever as a
// panel in the cache. Weights are packed for a depth multiplier of 1 where the options add the depthwise output.
void separable_conv_forward(ConvProblem problem, const PackedWeights& weights, SeparableOptions options, const void* x,
                            void* out);

}  // namespace dwsep
