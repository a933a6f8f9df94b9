#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/channels_last.h"
#include "cpu/expanded_stage_backward.h"
#include "cpu/isa.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {

bool expanded_stage_pays(const Tensor& x, const Tensor& expanded, const Tensor& depthwise_weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation) {
  const ConvProblem problem = make_problem(expanded, depthwise_weight, stride, padding, dilation);
  return ExpandedStageBackward::pays(RowsPlan(kernels(), problem, true), x.size(1));
}

ExpandedStageGradients expanded_stage_backward(
    const Tensor& grad, const Tensor& y, const std::optional<Tensor>& correction, const Tensor& x,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, const Tensor& weight,
    const Tensor& expanded, const Tensor& expanded_scale, const Tensor& expanded_shift, const Tensor& mean,
    const Tensor& invstd, const std::optional<Tensor>& norm_weight, const std::string& activation,
    const Tensor& depthwise_weight, bool has_bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool wants_x) {
  const StageInput narrow(x, scale, shift, "none");
  const StageInput wide(expanded, expanded_scale, expanded_shift, activation);
  const Tensor dense = to_contiguous(weight), depthwise = to_contiguous(depthwise_weight);
  const int64_t channels = wide.channels(), inner = narrow.channels();
  STD_TORCH_CHECK(
      x.dim() == 4 && expanded.dim() == 4 && x.size(0) == expanded.size(0) && spatial_of(x) == spatial_of(expanded),
      "expanded must have the pixels of x");
  STD_TORCH_CHECK(dense.dim() == 4 && dense.size(0) == channels && dense.numel() == channels * inner,
                  "pointwise weight must have shape (", channels, ", ", inner, ", 1, 1)");
  check_like("pointwise weight", dense, x);
  const ConvProblem problem = make_problem(expanded, depthwise, stride, padding, dilation);
  STD_TORCH_CHECK(problem.multiplier == 1, "expanded_stage takes a depth multiplier of 1, got ", problem.multiplier);
  const std::vector<int64_t> sizes = sizes_of(problem.batch, channels, {problem.output + 1, problem.output + 3});
  const Tensor gradient = check_output_like("grad", grad, sizes);
  const Tensor raw = correction.has_value() ? check_output_like("y", y, sizes) : gradient;
  check_correction(correction, x, channels);

  RowsPlan plan(kernels(), problem, true);
  if (!ExpandedStageBackward::fits(plan)) {
    const auto [of_expanded, of_affine, of_depthwise, of_bias] =
        depthwise_stage_backward(gradient, raw, correction, expanded, expanded_scale, expanded_shift, activation,
                                 depthwise, has_bias, stride, padding, dilation, {true, true});
    const auto [own, of_norm_weight, of_norm_bias] =
        stage_correction(of_affine, mean, invstd, norm_weight, narrow.pixels());
    const auto [of_x, of_x_affine, of_weight, of_no_bias] =
        pointwise_stage_backward(of_expanded, expanded, own, x, scale, shift, "none", dense, false, {wants_x, true});
    return {of_x, of_x_affine, of_weight, of_norm_weight, of_norm_bias, of_depthwise, of_bias};
  }

  // Outputs of an operator must not share memory, an empty one neither.
  const auto none = [] { return empty_float({0}); };
  const Tensor of_x = wants_x ? empty_stage_output(x.size(0), inner, spatial_of(x)) : none();
  const Tensor of_affine = wants_x && scale.has_value() ? empty_sums(inner) : none();
  const Tensor of_weight = empty_contiguous(dense), of_depthwise = empty_contiguous(depthwise);
  const Tensor of_bias = has_bias ? empty_float({channels}) : none();
  const Tensor sums = empty_sums(channels);
  const Strides out_strides = channels_last_strides(problem.output, channels);
  const Strides in_strides = channels_last_strides(problem.input, channels);
  const DepthwiseBackwardTensors tensors = {gradient.const_data_ptr(),
                                            out_strides,
                                            wide.x.const_data_ptr(),
                                            in_strides,
                                            nullptr,
                                            in_strides,
                                            of_depthwise.mutable_data_ptr(),
                                            has_bias ? of_bias.mutable_data_ptr() : nullptr};
  const StageBackward of_stage = {wide.scale_or_null(),
                                  wide.shift_or_null(),
                                  wide.activation,
                                  floats(raw),
                                  static_cast<const float*>(data_or_null(correction)),
                                  static_cast<double*>(sums.mutable_data_ptr()),
                                  channels};
  const PointwiseStage expand = {narrow.pixels(),
                                 inner,
                                 channels,
                                 narrow.data(),
                                 narrow.scale_or_null(),
                                 narrow.shift_or_null(),
                                 narrow.activation,
                                 floats(dense),
                                 inner,
                                 channels,
                                 nullptr,
                                 0,
                                 narrow.rounds};
  ExpandedStageBackward backward(expand, wants_x ? mutable_floats(of_x) : nullptr);
  backward.run(plan, {depthwise.const_data_ptr(), nullptr, nullptr, nullptr}, of_stage, tensors);
  const auto [own, of_norm_weight, of_norm_bias] = stage_correction(sums, mean, invstd, norm_weight, narrow.pixels());
  backward.finish(of_stage, floats(own),
                  of_affine.numel() > 0 ? static_cast<double*>(of_affine.mutable_data_ptr()) : nullptr,
                  mutable_floats(of_weight));
  return {of_x, of_affine, of_weight, of_norm_weight, of_norm_bias, of_depthwise, of_bias};
}

}  // namespace dwsep
