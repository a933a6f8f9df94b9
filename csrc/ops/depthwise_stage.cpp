#include <torch/csrc/stable/ops.h>

#include "cpu/channels_last.h"
#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_stage_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

ConvProblem make_stage_problem(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                               const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const ConvProblem problem = make_problem(x, weight, stride, padding, dilation);
  STD_TORCH_CHECK(problem.multiplier == 1, "depthwise_stage takes a depth multiplier of 1, got ", problem.multiplier);
  return problem;
}

std::vector<int64_t> output_spatial(const ConvProblem& problem, const Tensor& x) {
  return {problem.output + (5 - x.dim()), problem.output + 3};
}

}  // namespace

StageResult depthwise_stage(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                            const std::string& activation, const Tensor& weight, const std::optional<Tensor>& bias,
                            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation) {
  const StageInput input(x, scale, shift, activation);
  const Tensor dense = to_contiguous(weight);
  const ConvProblem problem = make_stage_problem(x, dense, stride, padding, dilation);
  const std::optional<Tensor> dense_bias = check_vector("depthwise bias", bias, x, problem.channels);
  const Tensor y = empty_stage_output(problem.batch, problem.channels, output_spatial(problem, x));
  const Tensor sums = empty_sums(problem.channels);
  depthwise_stage_forward(problem, {dense.const_data_ptr(), data_or_null(dense_bias), nullptr, nullptr},
                          {nullptr, input.scale_or_null(), input.shift_or_null(), input.activation}, input.data(),
                          channels_last_strides(problem.input, problem.channels), mutable_floats(y),
                          channels_last_strides(problem.output, problem.channels),
                          static_cast<double*>(sums.mutable_data_ptr()));
  return {y, sums};
}

StageGradientResult depthwise_stage_backward(const Tensor& grad, const Tensor& y,
                                             const std::optional<Tensor>& correction, const Tensor& x,
                                             const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                             const std::string& activation, const Tensor& weight, bool has_bias,
                                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                             const std::vector<int64_t>& dilation,
                                             const std::vector<bool>& output_mask) {
  const StageInput input(x, scale, shift, activation);
  const Tensor dense = to_contiguous(weight);
  const ConvProblem problem = make_stage_problem(x, dense, stride, padding, dilation);
  const int64_t channels = problem.channels;
  const StageGradientTensors made(x, scale.has_value(), dense, has_bias, output_mask);
  const OutputGradient output(grad, y, correction, x, sizes_of(problem.batch, channels, output_spatial(problem, x)));
  const DepthwiseBackwardTensors tensors = {
      output.gradient.const_data_ptr(),
      channels_last_strides(problem.output, channels),
      input.x.const_data_ptr(),
      channels_last_strides(problem.input, channels),
      made.x_or_null(),
      channels_last_strides(problem.input, channels),
      made.weight_or_null(),
      made.bias_or_null(),
  };
  const StageBackward stage = {input.scale_or_null(),       input.shift_or_null(), input.activation, floats(output.raw),
                               output.correction_or_null(), made.affine_or_null(), channels};
  depthwise_stage_backward(problem, {dense.const_data_ptr(), nullptr, nullptr, nullptr}, stage, tensors);
  return {made.x, made.affine, made.weight, made.bias};
}

}  // namespace dwsep
