#include "ops/separable_conv.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/separable_conv_kernel.h"
#include "ops/arguments.h"

namespace dwsep {
namespace {

void check_residual(Residual residual, const ConvProblem& problem) {
  if (residual == Residual::kDepthwise) {
    STD_TORCH_CHECK(problem.inner_channels == problem.out_channels,
                    "residual 'depthwise' needs the depthwise output's channels to equal the output's, got ",
                    problem.inner_channels, " and ", problem.out_channels);
  }
  if (residual == Residual::kInput) {
    bool same = problem.channels == problem.out_channels;
    for (int axis = 0; axis < 3; ++axis) same = same && problem.input[axis] == problem.output[axis];
    STD_TORCH_CHECK(same, "residual 'input' needs x and the output to have the same shape");
  }
}

}  // namespace

Tensor separable_conv(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, const std::string& inner_activation,
                      const std::string& activation, const std::string& residual) {
  const Tensor depthwise = torch::stable::contiguous(depthwise_weight);
  const Tensor pointwise = torch::stable::contiguous(pointwise_weight);
  ConvProblem problem = make_problem(x, depthwise, stride, padding, dilation);
  check_like("pointwise weight", pointwise, x);
  problem.out_channels = pointwise.size(0);
  STD_TORCH_CHECK(pointwise.dim() == x.dim() && problem.out_channels >= 1 &&
                      pointwise.numel() == problem.out_channels * problem.inner_channels,
                  "pointwise weight must have shape (K, ", problem.inner_channels, ", 1, ...)");
  check_vector("depthwise bias", depthwise_bias, x, problem.inner_channels);
  check_vector("pointwise bias", pointwise_bias, x, problem.out_channels);
  const SeparableOptions options = {parse_activation(inner_activation), parse_activation(activation),
                                    parse_residual(residual)};
  check_residual(options.residual, problem);

  const Tensor input = to_channels_last(x);
  const Tensor out = empty_channels_last(problem, problem.out_channels, x);
  const WeightSources sources = {depthwise.const_data_ptr(), data_or_null(depthwise_bias), pointwise.const_data_ptr(),
                                 data_or_null(pointwise_bias)};
  separable_conv_forward(problem, sources, options, input.const_data_ptr(), out.mutable_data_ptr());
  return in_layout_of(x, out);
}

}  // namespace dwsep
