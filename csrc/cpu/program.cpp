#include "cpu/program.h"

#include "cpu/dense_conv_kernel.h"
#include "cpu/depthwise_conv_kernel.h"
#include "cpu/elementwise.h"
#include "cpu/expanded_conv_kernel.h"
#include "cpu/isa.h"
#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/pointwise_conv_kernel.h"
#include "cpu/separable_conv_kernel.h"
#include "cpu/stage_gate_kernel.h"

namespace dwsep {
namespace {

PendingImages images_of(const ProgramValue& value) {
  return {value.data, nullptr, nullptr, Activation::kNone, value.batch, value.height * value.width, value.channels};
}

// out = activation(x) + operand.
void activate(const ProgramStep& step) {
  const KernelTable& table = kernels();
  const int64_t channels = step.input.channels;
  parallel_for(step.input.pixels(), std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    const int64_t at = begin * channels;
    table.stage_output({step.input.data + at, nullptr, nullptr, step.activation,
                        step.operand == nullptr ? nullptr : step.operand + at, end - begin, channels,
                        step.output.data + at});
  });
}

void layer_norm(const ProgramStep& step) {
  const KernelTable& table = kernels();
  const int64_t channels = step.input.channels;
  const float *scale = step.weights, *shift = scale + channels, eps = shift[channels];
  parallel_for(step.input.pixels(), std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    const int64_t at = begin * channels;
    table.layer_norm({step.input.data + at, end - begin, channels, scale, shift, eps, step.output.data + at});
  });
}

void expanded(const ProgramStep& step, bool separable) {
  const Residual residual = step.operand == nullptr || !separable ? Residual::kNone : Residual::kInput;
  expanded_conv_forward({step.problem,
                         step.input.channels,
                         step.input.data,
                         step.expansion,
                         step.expansion_activation,
                         packed_parts(step.problem, kernels(), step.weights),
                         {step.inner_activation, step.activation, residual, separable ? step.operand : nullptr, false,
                          separable && step.pairs},
                         separable,
                         step.output.data,
                         step.means.data,
                         step.pairs,
                         step.input.pixel_stride,
                         step.output.pixel_stride,
                         step.means.pixel_stride});
}

void depthwise(const ProgramStep& step) {
  const bool in_parts = !step.input.is_dense() || !step.output.is_dense();
  if (step.expansion != nullptr || step.means.data != nullptr || in_parts) {
    expanded(step, false);
  } else {
    depthwise_conv_forward(step.problem, packed_parts(step.problem, kernels(), step.weights), step.activation,
                           step.input.data, step.output.data);
  }
  if (step.operand != nullptr) {
    add_in_place(ElementType::kFloat32, step.output.data, step.operand, step.output.count());
  }
}

void separable(const ProgramStep& step) {
  if (step.expansion != nullptr || (step.problem.multiplier == 1 && planes_balance(step.problem)))
    return expanded(step, true);
  const Residual residual = step.operand == nullptr ? Residual::kNone : Residual::kInput;
  separable_conv_forward(step.problem, packed_parts(step.problem, kernels(), step.weights),
                         {step.inner_activation, step.activation, residual, step.operand, false, step.pairs},
                         step.input.data, step.output.data);
}

void run(const ProgramStep& step) {
  const ProgramValue &x = step.input, &out = step.output;
  switch (step.kind) {
    case StepKind::kDense:
      return dense_conv_forward(
          {step.problem, x.data, step.weights, step.activation, step.operand, out.data, step.pairs});
    case StepKind::kDepthwise:
      return depthwise(step);
    case StepKind::kPointwise:
      return pointwise_conv_forward({x.pixels(), x.channels, out.channels, x.data, step.weights, step.activation,
                                     step.operand, out.data, step.gate.data, x.height * x.width, step.pairs,
                                     x.pixel_stride, out.pixel_stride, step.gate.pixel_stride});
    case StepKind::kSeparable:
      return separable(step);
    case StepKind::kPool:
      return stage_image_sums(images_of(x), nullptr, 1.0 / static_cast<double>(x.height * x.width), out.data);
    case StepKind::kGate:
      return stage_gated(images_of(x), step.operand, out.data);
    case StepKind::kActivation:
      return activate(step);
    case StepKind::kLayerNorm:
      return layer_norm(step);
    case StepKind::kCount:
      return;
  }
}

}  // namespace

int64_t program_weights_size(const ProgramStep& step) {
  switch (step.kind) {
    case StepKind::kDense:
      return packed_pointwise_size(kernels(), step.problem.inner_channels, step.problem.out_channels);
    case StepKind::kPointwise:
      return packed_pointwise_size(kernels(), step.input.channels, step.output.channels);
    case StepKind::kDepthwise:
    case StepKind::kSeparable:
      return packed_size(step.problem, kernels());
    case StepKind::kLayerNorm:
      return 2 * step.input.channels + 1;
    default:
      return 0;
  }
}

int64_t program_expansion_size(const ProgramStep& step) {
  return packed_pointwise_size(kernels(), step.input.channels, step.problem.channels);
}

void run_program(const std::vector<ProgramStep>& steps) {
  for (const ProgramStep& step : steps) run(step);
}

}  // namespace dwsep
