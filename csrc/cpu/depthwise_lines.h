// Depthwise convolution of contiguous tensors with one axis, as the short convolutions of state-space models: every
// channel is a line that is read and written where it lies, while planes would be transposed twice.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/packing.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// Whether lines are the faster way, measured; of one axis, stride 1 and few taps.
bool lines_pay(const ConvProblem& problem, const Strides& x_strides, const Strides& out_strides);

// For problems of one axis and stride 1, of kMostLineTaps at most; strides along the axis must be 1.
void depthwise_lines_forward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const void* x, const Strides& x_strides, void* out, const Strides& out_strides);

}  // namespace dwsep
