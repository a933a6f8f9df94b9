#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/channels_last.h"
#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_stage_kernel.h"
#include "cpu/pointwise_stage_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

// One convolution of the stage: its channels of the input and of the output.
struct Part {
  Tensor weight;  // contiguous
  int64_t first_input, first_output;
  int64_t inputs, outputs;
  ConvProblem problem;  // of a depthwise one
};

std::vector<int64_t> entries(const std::vector<int64_t>& values, std::size_t part, std::size_t count) {
  const auto first = values.begin() + static_cast<std::ptrdiff_t>(part * count);
  return {first, first + static_cast<std::ptrdiff_t>(count)};
}

class MixedStage {
 public:
  MixedStage(const StageInput& input, const std::vector<Tensor>& weights, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation)
      : input_(input), depthwise_(!stride.empty()) {
    const Tensor& x = input.x;
    STD_TORCH_CHECK(x.dim() == 4, "x must have 4 dimensions, got ", x.dim());
    STD_TORCH_CHECK(!weights.empty(), "weights must have at least 1 entry");
    const std::size_t count = depthwise_ ? weights.size() : 0;
    STD_TORCH_CHECK(stride.size() == 2 * count && dilation.size() == 2 * count && padding.size() == 4 * count,
                    "stride and dilation must have 2 entries a weight, padding 4, or none at all");
    spatial_ = spatial_of(x);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Tensor dense = to_contiguous(weights[i]);
      STD_TORCH_CHECK(dense.dim() == 4 && dense.numel() >= 1, "weights must have 4 dimensions and entries");
      check_like("weights", dense, x);
      Part part = {dense, inputs_, outputs_, depthwise_ ? dense.size(0) : dense.size(1), dense.size(0), {}};
      if (depthwise_) {
        STD_TORCH_CHECK(dense.size(1) == 1, "depthwise weights must have shape (C, 1, KH, KW)");
        part.problem = make_problem({x.size(0), part.inputs, x.size(2), x.size(3)}, ElementType::kFloat32, part.outputs,
                                    {dense.size(2), dense.size(3)}, entries(stride, i, 2), entries(padding, i, 4),
                                    entries(dilation, i, 2));
        const std::vector<int64_t> spatial = {part.problem.output[1], part.problem.output[2]};
        STD_TORCH_CHECK(i == 0 || spatial == spatial_, "the parts' outputs must have the same size, got ", spatial[0],
                        "x", spatial[1], " for part ", i, " and ", spatial_[0], "x", spatial_[1], " before");
        spatial_ = spatial;
      } else {
        STD_TORCH_CHECK(dense.size(2) == 1 && dense.size(3) == 1, "pointwise weights must have shape (K, C, 1, 1)");
      }
      inputs_ += part.inputs;
      outputs_ += part.outputs;
      parts_.push_back(part);
    }
    STD_TORCH_CHECK(inputs_ == x.size(1), "weights must take x's ", x.size(1), " channels together, got ", inputs_);
  }

  bool depthwise() const { return depthwise_; }
  int64_t outputs() const { return outputs_; }
  const std::vector<int64_t>& spatial() const { return spatial_; }
  const std::vector<Part>& parts() const { return parts_; }
  const float* x(const Part& part) const { return input_.data() + part.first_input; }
  const float* scale(const Part& part) const { return channels_of(input_.scale_or_null(), part); }
  const float* shift(const Part& part) const { return channels_of(input_.shift_or_null(), part); }

  Strides input_strides(const Part& part) const { return channels_last_strides(part.problem.input, inputs_); }
  Strides output_strides(const Part& part) const { return channels_last_strides(part.problem.output, outputs_); }
  PointwiseStage pointwise(const Part& part) const {
    return {input_.pixels(),     part.inputs, part.outputs, x(part), scale(part), shift(part),  input_.activation,
            floats(part.weight), inputs_,     outputs_,     nullptr, 0,           input_.rounds};
  }

 private:
  const StageInput& input_;
  bool depthwise_;
  int64_t inputs_ = 0, outputs_ = 0;
  std::vector<int64_t> spatial_;
  std::vector<Part> parts_;

  static const float* channels_of(const float* values, const Part& part) {
    return values == nullptr ? nullptr : values + part.first_input;
  }
};

}  // namespace

StageResult mixed_stage(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                        const std::string& activation, const std::vector<Tensor>& weights,
                        const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const StageInput input(x, scale, shift, activation);
  const MixedStage stage(input, weights, stride, padding, dilation);
  const std::optional<Tensor> dense_bias = check_vector("bias", bias, x, stage.outputs());
  const Tensor y = empty_stage_output(x.size(0), stage.outputs(), stage.spatial());
  const Tensor sums = empty_sums(stage.outputs());
  std::vector<PointwiseStage> pointwise;
  std::vector<PointwiseStageOutputs> pointwise_outputs;
  for (const Part& part : stage.parts()) {
    const float* part_bias = dense_bias.has_value() ? floats(*dense_bias) + part.first_output : nullptr;
    float* out = mutable_floats(y) + part.first_output;
    double* part_sums = static_cast<double*>(sums.mutable_data_ptr()) + part.first_output;
    if (stage.depthwise()) {
      depthwise_stage_forward(part.problem, {part.weight.const_data_ptr(), part_bias, nullptr, nullptr},
                              {nullptr, stage.scale(part), stage.shift(part), input.activation}, stage.x(part),
                              stage.input_strides(part), out, stage.output_strides(part), part_sums);
    } else {
      pointwise.push_back(stage.pointwise(part));
      pointwise_outputs.push_back({part_bias, out, part_sums});
    }
  }
  if (!pointwise.empty()) pointwise_stages_forward(pointwise, pointwise_outputs);
  return {y, sums};
}

MixedStageGradientResult mixed_stage_backward(const Tensor& grad, const Tensor& y,
                                              const std::optional<Tensor>& correction, const Tensor& x,
                                              const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                              const std::string& activation, const std::vector<Tensor>& weights,
                                              bool has_bias, const std::vector<int64_t>& stride,
                                              const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                              const std::vector<bool>& output_mask) {
  const StageInput input(x, scale, shift, activation);
  const MixedStage stage(input, weights, stride, padding, dilation);
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask must have 2 entries, got ", output_mask.size());
  const std::vector<int64_t> sizes = sizes_of(x.size(0), stage.outputs(), stage.spatial());
  const Tensor gradient = check_output_like("grad", grad, sizes);
  const Tensor raw = correction.has_value() ? check_output_like("y", y, sizes) : gradient;
  check_correction(correction, x, stage.outputs());

  // Outputs of an operator must not share memory, an empty one neither.
  const auto none = [] { return empty_float({0}); };
  const bool wants_x = output_mask[0], wants_affine = wants_x && scale.has_value(), wants_weights = output_mask[1];
  const Tensor x_gradient = wants_x ? empty_stage_output(x.size(0), x.size(1), spatial_of(x)) : none();
  const Tensor affine = wants_affine ? empty_sums(x.size(1)) : none();
  const Tensor bias_gradient = wants_weights && has_bias ? empty_float({stage.outputs()}) : none();
  std::vector<Tensor> weight_gradients;
  std::vector<PointwiseStage> pointwise;
  std::vector<PointwiseStageGradients> pointwise_gradients;
  for (const Part& part : stage.parts()) {
    const int64_t first = part.first_output;
    if (wants_weights) weight_gradients.push_back(empty_contiguous(part.weight));
    float* part_x = wants_x ? mutable_floats(x_gradient) + part.first_input : nullptr;
    double* part_affine = wants_affine ? static_cast<double*>(affine.mutable_data_ptr()) + part.first_input : nullptr;
    float* part_weight = wants_weights ? mutable_floats(weight_gradients.back()) : nullptr;
    float* part_bias = wants_weights && has_bias ? mutable_floats(bias_gradient) + first : nullptr;
    const float* part_correction = correction.has_value() ? floats(*correction) + first : nullptr;
    if (!stage.depthwise()) {
      pointwise.push_back(stage.pointwise(part));
      pointwise_gradients.push_back({floats(gradient) + first, floats(raw) + first, part_correction, part_x,
                                     part_affine, part_weight, part_bias});
      continue;
    }
    const Strides in = stage.input_strides(part);
    depthwise_stage_backward(
        part.problem, {part.weight.const_data_ptr(), nullptr, nullptr, nullptr},
        {stage.scale(part), stage.shift(part), input.activation, floats(raw) + first, part_correction, part_affine,
         stage.outputs()},
        {floats(gradient) + first, stage.output_strides(part), stage.x(part), in, part_x, in, part_weight, part_bias});
  }
  if (!pointwise.empty()) pointwise_stages_backward(pointwise, pointwise_gradients);
  return {x_gradient, affine, weight_gradients, bias_gradient};
}

}  // namespace dwsep
