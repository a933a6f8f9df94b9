#include "ops/depthwise_conv.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/channels_last.h"
#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_conv_kernel.h"
#include "cpu/depthwise_lines.h"
#include "cpu/repeated_channels.h"
#include "ops/arguments.h"
#include "ops/output_memory.h"

namespace dwsep {
namespace {

// Whether an image of planes is computed sooner as a channels-last copy, which is copied back: where rows are short,
// and bfloat16 where kernels are wide, as long as caches hold the copies.
bool copies_pay(const ConvProblem& problem) {
  constexpr int64_t kTiny = 8, kShort = 14, kFewElements = int64_t{4} << 20;
  const bool volume = problem.kernel[0] > 1 || problem.input[0] > 1, line = problem.input[1] == 1;
  if (volume || line || problem.multiplier > 1) return false;
  if (problem.element_type == ElementType::kFloat32) return problem.output[2] <= kTiny && problem.batch > 1;
  if (problem.output[2] <= kShort) return true;
  return problem.kernel[2] > 5 && problem.channels >= 32 && input_elements(problem) < kFewElements;
}

}  // namespace

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, const std::string& activation) {
  const Tensor depthwise = to_contiguous(weight);
  const ConvProblem problem = make_problem(x, depthwise, stride, padding, dilation);
  const std::optional<Tensor> dense_bias = check_vector("depthwise bias", bias, x, problem.inner_channels);
  const Activation applied = parse_activation(activation);

  const WeightSources sources = {depthwise.const_data_ptr(), data_or_null(dense_bias), nullptr, nullptr};
  if (!is_channels_last(x) && !copies_pay(problem)) {
    const Tensor input = with_a_unit_stride(x, x);
    const std::vector<int64_t> spatial(problem.output + (5 - x.dim()), problem.output + 3);
    const Tensor out = empty_in_layout_of(x, problem.inner_channels, spatial);
    const Strides from = strides_of(input), to = strides_of(out);
    const auto forward = lines_pay(problem, from, to) ? depthwise_lines_forward : depthwise_conv_forward_on_planes;
    forward(problem, sources, applied, input.const_data_ptr(), from, out.mutable_data_ptr(), to);
    return out;
  }
  const Tensor input = to_channels_last(x);
  const Tensor out = empty_channels_last(problem, problem.inner_channels, x);
  depthwise_conv_forward(problem, sources, applied, input.const_data_ptr(), out.mutable_data_ptr());
  return in_layout_of(x, out);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& activation, const std::vector<bool>& output_mask) {
  const Tensor depthwise = to_contiguous(weight);
  const ConvProblem problem = make_problem(x, depthwise, stride, padding, dilation);
  const std::optional<Tensor> dense_bias = check_vector("depthwise bias", bias, x, problem.inner_channels);
  check_gradient(grad, x, problem, problem.inner_channels);
  STD_TORCH_CHECK(output_mask.size() == 3, "output_mask must have 3 entries, got ", output_mask.size());
  const Activation applied = parse_activation(activation);

  const std::vector<int64_t> spatial(x.sizes().begin() + 2, x.sizes().end());
  // Outputs of an operator must not share memory, an empty one neither.
  const auto none = [&] { return empty_tensor({0}, x.scalar_type()); };
  const Tensor x_gradient = output_mask[0] ? empty_in_layout_of(x, x.size(1), spatial) : none();
  const Tensor weight_gradient = output_mask[1] ? empty_contiguous(depthwise) : none();
  const bool wants_bias = output_mask[2] && bias.has_value();
  const Tensor bias_gradient = wants_bias ? empty_contiguous(*bias) : none();
  const WeightSources sources = {depthwise.const_data_ptr(), data_or_null(dense_bias), nullptr, nullptr};
  DepthwiseBackwardTensors tensors = {};
  tensors.weight_gradient = output_mask[1] ? weight_gradient.mutable_data_ptr() : nullptr;
  tensors.bias_gradient = wants_bias ? bias_gradient.mutable_data_ptr() : nullptr;

  // A bfloat16 gradient would be rounded for each output before it is summed.
  if (problem.multiplier > 1 && is_channels_last(x) && problem.element_type == ElementType::kFloat32) {
    const ConvProblem wide = of_repeated_channels(problem);
    const Tensor input = to_channels_last(x), gradient = to_channels_last(grad);
    const RepeatedChannels repeated(problem, input.const_data_ptr());
    const Workspace wide_gradient(static_cast<std::size_t>(output_mask[0] ? input_elements(wide) : 0));
    tensors.gradient = gradient.const_data_ptr();
    tensors.gradient_strides = channels_last_strides(wide.output, wide.channels);
    tensors.x = repeated.data();
    tensors.x_strides = tensors.x_gradient_strides = channels_last_strides(wide.input, wide.channels);
    tensors.x_gradient = output_mask[0] ? wide_gradient.data() : nullptr;
    depthwise_conv_backward(wide, sources, applied, tensors);
    if (output_mask[0]) {
      sum_repeated_elements(wide_gradient.data(), input_elements(problem), problem.multiplier,
                            static_cast<float*>(x_gradient.mutable_data_ptr()));
    }
    return {x_gradient, weight_gradient, bias_gradient};
  }
  const Tensor input = with_a_unit_stride(x, x), gradient = with_a_unit_stride(grad, x);
  tensors.gradient = gradient.const_data_ptr();
  tensors.gradient_strides = strides_of(gradient);
  tensors.x = input.const_data_ptr();
  tensors.x_strides = strides_of(input);
  tensors.x_gradient = output_mask[0] ? x_gradient.mutable_data_ptr() : nullptr;
  tensors.x_gradient_strides = output_mask[0] ? strides_of(x_gradient) : Strides{};
  depthwise_conv_backward(problem, sources, applied, tensors);
  return {x_gradient, weight_gradient, bias_gradient};
}

}  // namespace dwsep
