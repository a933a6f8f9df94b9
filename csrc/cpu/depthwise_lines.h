// Depthwise convolution of contiguous tensors with one axis, as the short convolutions of state-space models: every
// channel is a line that is read and written where it lies, while planes would be transposed twice.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/depthwise_backward_kernel.h"
#include "cpu/packing.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// Whether lines are the faster way, measured; of one axis, stride 1 and few taps.
bool lines_pay(const ConvProblem& problem, const Strides& x_strides, const Strides& out_strides);

// For problems of one axis and stride 1, of kMostLineTaps at most; strides along the axis must be 1.
void depthwise_lines_forward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const void* x, const Strides& x_strides, void* out, const Strides& out_strides);

// The same of the way back, of floats.
bool lines_pay_backward(const ConvProblem& problem, const DepthwiseBackwardTensors& tensors);

// Every gradient that `tensors` has room for.
void depthwise_lines_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                              const DepthwiseBackwardTensors& tensors);

}  // namespace dwsep
