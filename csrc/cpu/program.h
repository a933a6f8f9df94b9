// A network's inference as a list of steps over channels-last float tensors, run one behind the other without a return.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"

namespace dwsep {

enum class StepKind : int32_t {
  kDense,
  kDepthwise,
  kPointwise,
  kSeparable,
  kPool,
  kGate,
  kActivation,
  kLayerNorm,
  kCount
};

// (N, C, H, W), in memory (N, H, W, C), or consecutive channels of such a value.
struct ProgramValue {
  int64_t batch, channels, height, width;
  float* data;
  int64_t pixel_stride = 0;  // floats from a pixel to the next
  bool is_input = false;     // and so nothing to write to

  int64_t pixels() const { return batch * height * width; }
  int64_t count() const { return pixels() * channels; }
  bool is_dense() const { return pixel_stride == channels; }
};

struct ProgramStep {
  StepKind kind;
  ProgramValue input, output;
  const float* operand;  // what is added to the result and lies as it does, or the gate; null for nothing
  ProgramValue gate;     // (N, C, 1, 1), times the input of a pointwise convolution; null data for nothing
  ConvProblem problem;   // of a convolution
  Activation inner_activation, activation;
  const float* weights;  // packed; of a layer norm its scale and shift per channel, and eps
  // Of a 1x1 convolution before a depthwise or separable one, whose output has the problem's channels; null for none.
  const float* expansion;
  Activation expansion_activation;
  ProgramValue means;  // of a depthwise convolution's output over its pixels; null data where nobody asks
  bool pairs;          // whether the weights of pointwise factors were packed so
};

// Floats of a step's packed weights, with the kernels in use.
int64_t program_weights_size(const ProgramStep& step);
int64_t program_expansion_size(const ProgramStep& step);

void run_program(const std::vector<ProgramStep>& steps);

}  // namespace dwsep
