// The operators of training stages; what they compute is in src/dwsep/kernels/stage_reference.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dwsep {

using StageResult = std::tuple<torch::stable::Tensor, torch::stable::Tensor>;
// Of x, of scale and shift, of the weight and of the bias; empty where none is wanted.
using StageGradientResult =
    std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

StageResult pointwise_stage(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                            const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                            const torch::stable::Tensor& weight, const std::optional<torch::stable::Tensor>& bias);

StageGradientResult pointwise_stage_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
                                             const std::optional<torch::stable::Tensor>& correction,
                                             const torch::stable::Tensor& x,
                                             const std::optional<torch::stable::Tensor>& scale,
                                             const std::optional<torch::stable::Tensor>& shift,
                                             const std::string& activation, const torch::stable::Tensor& weight,
                                             bool has_bias, const std::vector<bool>& output_mask);

// The same of the product with a gate (N, C), which is made while loading; back, the gradients of the product and of
// the gate in place of those of x and of its scale and shift. Parts of a training program, no operators.
StageResult gated_pointwise_stage(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                  const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                                  const torch::stable::Tensor& gate, const torch::stable::Tensor& weight,
                                  const std::optional<torch::stable::Tensor>& bias);
StageGradientResult gated_pointwise_stage_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
                                                   const std::optional<torch::stable::Tensor>& correction,
                                                   const torch::stable::Tensor& x,
                                                   const std::optional<torch::stable::Tensor>& scale,
                                                   const std::optional<torch::stable::Tensor>& shift,
                                                   const std::string& activation, const torch::stable::Tensor& gate,
                                                   const torch::stable::Tensor& weight, bool has_bias,
                                                   const std::vector<bool>& output_mask);

// Of convolutions with a geometry.
using GeometryStage = StageResult(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                  const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                                  const torch::stable::Tensor& weight, const std::optional<torch::stable::Tensor>& bias,
                                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation);
using GeometryStageBackward = StageGradientResult(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
    const std::optional<torch::stable::Tensor>& correction, const torch::stable::Tensor& x,
    const std::optional<torch::stable::Tensor>& scale, const std::optional<torch::stable::Tensor>& shift,
    const std::string& activation, const torch::stable::Tensor& weight, bool has_bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::vector<bool>& output_mask);
GeometryStage depthwise_stage, dense_stage;
GeometryStageBackward depthwise_stage_backward, dense_stage_backward;

// The way back through a pointwise stage whose output's norm takes its statistics from the batch, and through the
// depthwise stage behind it. Gradients of x, of its scale and shift, of the pointwise weight, of the norm's weight and
// bias, of the depthwise weight and bias; those of x are empty where they are not wanted.
using ExpandedStageGradients =
    std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
               torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;
ExpandedStageGradients expanded_stage_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
    const std::optional<torch::stable::Tensor>& correction, const torch::stable::Tensor& x,
    const std::optional<torch::stable::Tensor>& scale, const std::optional<torch::stable::Tensor>& shift,
    const torch::stable::Tensor& weight, const torch::stable::Tensor& expanded,
    const torch::stable::Tensor& expanded_scale, const torch::stable::Tensor& expanded_shift,
    const torch::stable::Tensor& mean, const torch::stable::Tensor& invstd,
    const std::optional<torch::stable::Tensor>& norm_weight, const std::string& activation,
    const torch::stable::Tensor& depthwise_weight, bool has_bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool wants_x);

// Whether that is faster than the two stages one by one.
bool expanded_stage_pays(const torch::stable::Tensor& x, const torch::stable::Tensor& expanded,
                         const torch::stable::Tensor& depthwise_weight, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);

// Convolutions of the channels of x in turn, each with some of its own; all depthwise, with a geometry of so many
// entries a weight, or all 1x1, with none.
StageResult mixed_stage(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                        const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                        const std::vector<torch::stable::Tensor>& weights,
                        const std::optional<torch::stable::Tensor>& bias, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);

using MixedStageGradientResult =
    std::tuple<torch::stable::Tensor, torch::stable::Tensor, std::vector<torch::stable::Tensor>, torch::stable::Tensor>;
MixedStageGradientResult mixed_stage_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
    const std::optional<torch::stable::Tensor>& correction, const torch::stable::Tensor& x,
    const std::optional<torch::stable::Tensor>& scale, const std::optional<torch::stable::Tensor>& shift,
    const std::string& activation, const std::vector<torch::stable::Tensor>& weights, bool has_bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::vector<bool>& output_mask);

torch::stable::Tensor stage_output(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                   const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                                   const std::optional<torch::stable::Tensor>& residual);

StageResult stage_output_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& x,
                                  const std::optional<torch::stable::Tensor>& scale,
                                  const std::optional<torch::stable::Tensor>& shift, const std::string& activation);

// Means over every image's pixels, (N, C).
torch::stable::Tensor stage_pool(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                 const std::optional<torch::stable::Tensor>& shift, const std::string& activation);

torch::stable::Tensor stage_gate(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                 const std::optional<torch::stable::Tensor>& shift, const std::string& activation,
                                 const torch::stable::Tensor& gate);

torch::stable::Tensor stage_gate_gradient(const torch::stable::Tensor& grad, const torch::stable::Tensor& x,
                                          const std::optional<torch::stable::Tensor>& scale,
                                          const std::optional<torch::stable::Tensor>& shift,
                                          const std::string& activation);

// The way back through the means and the product with the gate at once.
StageResult stage_squeeze_backward(const std::optional<torch::stable::Tensor>& grad,
                                   const std::optional<torch::stable::Tensor>& gate,
                                   const std::optional<torch::stable::Tensor>& grad_mean,
                                   const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& scale,
                                   const std::optional<torch::stable::Tensor>& shift, const std::string& activation);

// Scale, shift, mean and 1 / sqrt(variance + eps); the running statistics are updated in place.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> stage_statistics(
    const torch::stable::Tensor& sums, int64_t count, const std::optional<torch::stable::Tensor>& weight,
    const std::optional<torch::stable::Tensor>& bias, double eps, double momentum,
    const std::optional<torch::stable::Tensor>& running_mean, const std::optional<torch::stable::Tensor>& running_var);

// The correction (2, C), and the gradients of the norm's weight and bias.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> stage_correction(
    const torch::stable::Tensor& grad_affine, const torch::stable::Tensor& mean, const torch::stable::Tensor& invstd,
    const std::optional<torch::stable::Tensor>& weight, int64_t count);

torch::stable::Tensor stage_sums(const torch::stable::Tensor& x);
torch::stable::Tensor stage_corrected(const torch::stable::Tensor& grad, const torch::stable::Tensor& y,
                                      const torch::stable::Tensor& correction);

}  // namespace dwsep
