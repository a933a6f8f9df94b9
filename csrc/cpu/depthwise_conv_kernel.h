#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// out (N, D, H, W, C * M) = activation(depthwise(x)), x and out channels last and dense.
void depthwise_conv_forward(ConvProblem problem, const WeightSources& weights, Activation activation, const void* x,
                            void* out);

// The same with weights packed before.
void depthwise_conv_forward(ConvProblem problem, const PackedWeights& weights, Activation activation, const void* x,
                            void* out);

// The same in any layout, by way of planes.
void depthwise_conv_forward_on_planes(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                                      const void* x, const Strides& x_strides, void* out, const Strides& out_strides);

}  // namespace dwsep
