#include <torch/csrc/stable/ops.h>

#include "cpu/dense_stage_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

// The input and the weight, checked.
struct DenseArguments {
  StageInput input;
  Tensor weight;  // its channels innermost
  ConvProblem problem;

  DenseArguments(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                 const std::string& activation, const Tensor& dense_weight, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation)
      : input(x, scale, shift, activation), weight(checked(dense_weight, x)) {
    problem =
        make_problem(x, weight.numel() / weight.size(0), {weight.size(2), weight.size(3)}, stride, padding, dilation);
    problem.out_channels = weight.size(0);
  }

  DenseStage stage() const {
    return {problem,
            input.data(),
            {nullptr, input.scale_or_null(), input.shift_or_null(), input.activation},
            floats(weight),
            input.rounds};
  }
  std::vector<int64_t> output_sizes() const {
    return sizes_of(problem.batch, problem.out_channels, {problem.output + 1, problem.output + 3});
  }

 private:
  static Tensor checked(const Tensor& weight, const Tensor& x) {
    STD_TORCH_CHECK(
        x.dim() == 4 && weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == x.size(1) && weight.numel() > 0,
        "dense weight must have shape (K, ", x.size(1), ", kernel height, kernel width)");
    STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == x.scalar_type(),
                    "dense weight must be on the CPU, with the dtype of x");
    return to_channels_last(weight);
  }
};

}  // namespace

StageResult dense_stage(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                        const std::string& activation, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation) {
  const DenseArguments arguments(x, scale, shift, activation, weight, stride, padding, dilation);
  const int64_t outputs = weight.size(0);
  const std::optional<Tensor> dense_bias = check_vector("dense bias", bias, x, outputs);
  const std::vector<int64_t> sizes = arguments.output_sizes();
  const Tensor y = empty_stage_output(sizes[0], outputs, {sizes.begin() + 2, sizes.end()});
  const Tensor sums = empty_sums(outputs);
  dense_stage_forward(arguments.stage(), static_cast<const float*>(data_or_null(dense_bias)), mutable_floats(y),
                      static_cast<double*>(sums.mutable_data_ptr()));
  return {y, sums};
}

StageGradientResult dense_stage_backward(const Tensor& grad, const Tensor& y, const std::optional<Tensor>& correction,
                                         const Tensor& x, const std::optional<Tensor>& scale,
                                         const std::optional<Tensor>& shift, const std::string& activation,
                                         const Tensor& weight, bool has_bias, const std::vector<int64_t>& stride,
                                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                         const std::vector<bool>& output_mask) {
  const DenseArguments arguments(x, scale, shift, activation, weight, stride, padding, dilation);
  const StageGradientTensors made(x, scale.has_value(), weight, has_bias, output_mask);
  const OutputGradient output(grad, y, correction, x, arguments.output_sizes());
  dense_stage_backward(arguments.stage(),
                       {floats(output.gradient), floats(output.raw), output.correction_or_null(), made.x_or_null(),
                        made.affine_or_null(), made.weight_or_null(), made.bias_or_null()});
  return {made.x, made.affine, made.weight, made.bias};
}

}  // namespace dwsep
