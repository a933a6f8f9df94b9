#include "ops/depthwise_conv.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/depthwise_conv_kernel.h"
#include "ops/arguments.h"

namespace dwsep {

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, const std::string& activation) {
  const Tensor depthwise = torch::stable::contiguous(weight);
  const ConvProblem problem = make_problem(x, depthwise, stride, padding, dilation);
  check_vector("depthwise bias", bias, x, problem.inner_channels);
  const Activation applied = parse_activation(activation);

  const Tensor input = to_channels_last(x);
  const Tensor out = empty_channels_last(problem, problem.inner_channels, x);
  const WeightSources sources = {depthwise.const_data_ptr(), data_or_null(bias), nullptr, nullptr};
  depthwise_conv_forward(problem, sources, applied, input.const_data_ptr(), out.mutable_data_ptr());
  return in_layout_of(x, out);
}

}  // namespace dwsep
