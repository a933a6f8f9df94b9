// Both gradients of a depthwise convolution straight from channels-last tensors.
#pragma once

#include <cstdint>

#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_bands.h"

namespace dwsep {

// Whether there is a kernel for it, and it is the fastest way: where both gradients are wanted, and a few taps leave
// the time to the tensors, which are read as they lie. `tensors` are channels last.
bool direct_backward_pays(const KernelTable& kernels, const ConvProblem& problem,
                          const DepthwiseBackwardTensors& tensors);

void depthwise_direct_backward(const ConvProblem& problem, const WeightSources& weights,
                               const DepthwiseBackwardTensors& tensors);

}  // namespace dwsep
