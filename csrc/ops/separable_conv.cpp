#include "ops/separable_conv.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/elementwise.h"
#include "cpu/isa.h"
#include "cpu/repeated_channels.h"
#include "cpu/separable_backward_kernel.h"
#include "cpu/separable_conv_kernel.h"
#include "ops/arguments.h"
#include "ops/output_memory.h"

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

SeparableOptions make_options(const ConvProblem& problem, const std::string& inner_activation,
                              const std::string& activation, const std::string& residual) {
  const SeparableOptions options = {parse_activation(inner_activation), parse_activation(activation),
                                    parse_residual(residual)};
  check_residual(options.residual, problem);
  return options;
}

Tensor run(const Tensor& x, const ConvProblem& problem, const PackedWeights& weights, const SeparableOptions& options) {
  const Tensor input = to_channels_last(x);
  const Tensor out = empty_channels_last(problem, problem.out_channels, x);
  separable_conv_forward(problem, weights, options, input.const_data_ptr(), out.mutable_data_ptr());
  return in_layout_of(x, out);
}

void check_pointwise(const Tensor& pointwise, const Tensor& like, int64_t inner_channels) {
  check_like("pointwise weight", pointwise, like);
  STD_TORCH_CHECK(pointwise.dim() == like.dim() && pointwise.size(0) >= 1 &&
                      pointwise.numel() == pointwise.size(0) * inner_channels,
                  "pointwise weight must have shape (K, ", inner_channels, ", 1, ...)");
}

// What both directions take, checked.
struct Arguments {
  Tensor depthwise, pointwise;  // contiguous, and so are the biases
  std::optional<Tensor> depthwise_bias, pointwise_bias;
  ConvProblem problem;
  SeparableOptions options;
  WeightSources sources;

  Arguments(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
            const std::optional<Tensor>& inner_bias, const std::optional<Tensor>& outer_bias,
            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
            const std::vector<int64_t>& dilation, const std::string& inner_activation, const std::string& activation,
            const std::string& residual)
      : depthwise(to_contiguous(depthwise_weight)),
        pointwise(to_contiguous(pointwise_weight)),
        problem(make_problem(x, depthwise, stride, padding, dilation)) {
    check_pointwise(pointwise, x, problem.inner_channels);
    problem.out_channels = pointwise.size(0);
    depthwise_bias = check_vector("depthwise bias", inner_bias, x, problem.inner_channels);
    pointwise_bias = check_vector("pointwise bias", outer_bias, x, problem.out_channels);
    options = make_options(problem, inner_activation, activation, residual);
    sources = {depthwise.const_data_ptr(), data_or_null(depthwise_bias), pointwise.const_data_ptr(),
               data_or_null(pointwise_bias)};
  }
};

// The problem that the weights are packed for: an order of the channels between of which some are added to the output
// is the output's.
ConvProblem packing_problem(const ConvProblem& problem, Residual residual) {
  return residual == Residual::kDepthwise ? of_repeated_channels(problem) : problem;
}

// The part of a problem that the packing of its weights depends on.
ConvProblem weights_problem(int64_t inner_channels, int64_t multiplier, int64_t taps, int64_t out_channels) {
  ConvProblem problem = {};
  problem.channels = inner_channels / multiplier;
  problem.multiplier = multiplier;
  problem.inner_channels = inner_channels;
  problem.out_channels = out_channels;
  problem.kernel[0] = problem.kernel[1] = 1;
  problem.kernel[2] = taps;
  return problem;
}

}  // namespace

Tensor separable_conv(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, const std::string& inner_activation,
                      const std::string& activation, const std::string& residual) {
  const Arguments arguments(x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding,
                            dilation, inner_activation, activation, residual);
  const ConvProblem& problem = arguments.problem;
  const ConvProblem packing = packing_problem(problem, arguments.options.residual);
  SeparableOptions options = arguments.options;
  options.fresh = true;
  return run(x, problem, pack_weights(packing, kernels(), arguments.sources), options);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> separable_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
    const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& inner_activation, const std::string& activation, const std::string& residual,
    const std::vector<bool>& output_mask) {
  const Arguments arguments(x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding,
                            dilation, inner_activation, activation, residual);
  const ConvProblem& problem = arguments.problem;
  const SeparableOptions& options = arguments.options;
  const WeightSources& sources = arguments.sources;
  check_gradient(grad, x, problem, problem.out_channels);
  STD_TORCH_CHECK(output_mask.size() == 5, "output_mask must have 5 entries, got ", output_mask.size());

  const Tensor input = to_channels_last(x);
  const Tensor outer = to_channels_last(grad);
  Tensor gradient = outer;
  if (options.activation != Activation::kNone) {
    // The output before the activation, once more.
    const SeparableOptions raw_options = {
        options.inner_activation, Activation::kNone,
        options.residual == Residual::kDepthwise ? options.residual : Residual::kNone};
    const Tensor raw = empty_channels_last(problem, problem.out_channels, input);
    const ConvProblem packing = packing_problem(problem, raw_options.residual);
    separable_conv_forward(problem, pack_weights(packing, kernels(), sources), raw_options, input.const_data_ptr(),
                           raw.mutable_data_ptr());
    gradient = empty_channels_last(problem, problem.out_channels, input);
    activation_gradient(options.activation, problem.element_type, raw.const_data_ptr(), outer.const_data_ptr(),
                        gradient.mutable_data_ptr(), gradient.numel());
  }

  // Outputs of an operator must not share memory, an empty one neither.
  const auto none = [&] { return empty_tensor({0}, x.scalar_type()); };
  Tensor x_gradient = none();
  if (output_mask[0]) {
    ConvProblem shape = problem;
    for (int axis = 0; axis < 3; ++axis) shape.output[axis] = problem.input[axis];
    x_gradient = empty_channels_last(shape, problem.channels, x);
  }
  const Tensor depthwise_gradient = output_mask[1] ? empty_contiguous(arguments.depthwise) : none();
  const Tensor pointwise_gradient = output_mask[2] ? empty_contiguous(arguments.pointwise) : none();
  const bool wants_depthwise_bias = output_mask[3] && depthwise_bias.has_value();
  const bool wants_pointwise_bias = output_mask[4] && pointwise_bias.has_value();
  const Tensor depthwise_bias_gradient = wants_depthwise_bias ? empty_contiguous(*depthwise_bias) : none();
  const Tensor pointwise_bias_gradient = wants_pointwise_bias ? empty_contiguous(*pointwise_bias) : none();
  const SeparableBackwardTensors tensors = {
      gradient.const_data_ptr(),
      input.const_data_ptr(),
      output_mask[0] ? x_gradient.mutable_data_ptr() : nullptr,
      output_mask[1] ? depthwise_gradient.mutable_data_ptr() : nullptr,
      output_mask[2] ? pointwise_gradient.mutable_data_ptr() : nullptr,
      wants_depthwise_bias ? depthwise_bias_gradient.mutable_data_ptr() : nullptr,
      wants_pointwise_bias ? pointwise_bias_gradient.mutable_data_ptr() : nullptr,
  };
  separable_conv_backward(problem, sources, options.inner_activation, options.residual == Residual::kDepthwise,
                          tensors);
  if (output_mask[0] && options.residual == Residual::kInput) {
    add_in_place(problem.element_type, x_gradient.mutable_data_ptr(), outer.const_data_ptr(), x_gradient.numel());
  }
  if (output_mask[0]) x_gradient = in_layout_of(x, x_gradient);
  return {x_gradient, depthwise_gradient, pointwise_gradient, depthwise_bias_gradient, pointwise_bias_gradient};
}

Tensor pack_separable_weights(const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                              const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
                              int64_t depth_multiplier, bool bfloat16) {
  using torch::headeronly::ScalarType;
  const Tensor depthwise = to_contiguous(depthwise_weight);
  const Tensor pointwise = to_contiguous(pointwise_weight);
  STD_TORCH_CHECK(depthwise.scalar_type() == ScalarType::Float || depthwise.scalar_type() == ScalarType::BFloat16,
                  "weights must be float32 or bfloat16");
  check_like("depthwise weight", depthwise, depthwise);
  STD_TORCH_CHECK(depthwise.dim() >= 3 && depthwise.size(1) == 1 && depthwise.numel() >= 1,
                  "depthwise weight must have shape (C * M, 1, *kernel)");
  const int64_t inner = depthwise.size(0);
  STD_TORCH_CHECK(depth_multiplier >= 1 && inner % depth_multiplier == 0, "depth_multiplier must divide the ", inner,
                  " channels of the depthwise weight, got ", depth_multiplier);
  check_pointwise(pointwise, depthwise, inner);
  const std::optional<Tensor> inner_bias = check_vector("depthwise bias", depthwise_bias, depthwise, inner);
  const std::optional<Tensor> outer_bias = check_vector("pointwise bias", pointwise_bias, depthwise, pointwise.size(0));
  ConvProblem problem = weights_problem(inner, depth_multiplier, depthwise.numel() / inner, pointwise.size(0));
  problem.element_type = element_type_of(depthwise);
  const WeightSources sources = {depthwise.const_data_ptr(), data_or_null(inner_bias), pointwise.const_data_ptr(),
                                 data_or_null(outer_bias)};
  const int64_t size = packed_size(problem, kernels());
  const Tensor packed = empty_tensor({size}, ScalarType::Float);
  pack_weights(problem, kernels(), sources, static_cast<float*>(packed.mutable_data_ptr()),
               takes_pairs(kernels(), bfloat16));
  return packed;
}

Tensor pack_depthwise_weights(const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float, "weight must be float32 on the CPU");
  STD_TORCH_CHECK(weight.dim() >= 3 && weight.size(1) == 1 && weight.numel() >= 1,
                  "depthwise weight must have shape (C * M, 1, *kernel)");
  const Tensor dense = to_contiguous(weight);
  const int64_t channels = weight.size(0);
  const std::optional<Tensor> dense_bias = check_vector("depthwise bias", bias, dense, channels);
  const ConvProblem problem = weights_problem(channels, 1, dense.numel() / channels, 0);
  const Tensor packed = empty_tensor({packed_size(problem, kernels())}, ScalarType::Float);
  pack_weights(problem, kernels(), {dense.const_data_ptr(), data_or_null(dense_bias), nullptr, nullptr},
               static_cast<float*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor separable_conv_packed(const Tensor& x, const Tensor& packed, int64_t inner_channels, int64_t out_channels,
                             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                             const std::string& inner_activation, const std::string& activation,
                             const std::string& residual, bool bfloat16) {
  ConvProblem problem = make_problem(x, inner_channels, kernel_size, stride, padding, dilation);
  STD_TORCH_CHECK(out_channels >= 1, "out_channels must be at least 1, got ", out_channels);
  problem.out_channels = out_channels;
  SeparableOptions options = make_options(problem, inner_activation, activation, residual);
  const ConvProblem packing = packing_problem(problem, options.residual);
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == torch::headeronly::ScalarType::Float &&
                      packed.is_contiguous() && packed.numel() == packed_size(packing, kernels()),
                  "packed must be what pack_separable_weights returned for these sizes");
  options.pairs = problem.element_type == ElementType::kFloat32 && takes_pairs(kernels(), bfloat16);
  const auto* memory = static_cast<const float*>(packed.const_data_ptr());
  return run(x, problem, packed_parts(packing, kernels(), memory), options);
}

int64_t packed_separable_size(int64_t inner_channels, int64_t multiplier, int64_t taps, int64_t out_channels,
                              bool bfloat16) {
  ConvProblem problem = weights_problem(inner_channels, multiplier, taps, out_channels);
  problem.element_type = bfloat16 ? ElementType::kBFloat16 : ElementType::kFloat32;
  return packed_size(problem, kernels());
}

}  // namespace dwsep
