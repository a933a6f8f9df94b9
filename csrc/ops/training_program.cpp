#include "ops/training_program.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "ops/stages.h"
#include "ops/training_steps.h"

namespace dwsep {
namespace {

using training::Kind;
using training::Statistics;
using training::Step;
using training::Value;

using Tensors = std::vector<Tensor>;

// Of a norm that keeps to its running statistics.
void add_frozen(const Step& step, const Tensors& parameters, const Tensor& mean, const Tensor& variance,
                Tensors& made) {
  const int64_t channels = mean.numel();
  const auto weight = training::at(parameters, step.norm_weight), bias = training::at(parameters, step.norm_bias);
  check_channels("running_mean", mean, channels);
  check_channels("running_var", variance, channels);
  check_channels("weight", weight, channels);
  check_channels("bias", bias, channels);
  const float *means = floats(mean), *variances = floats(variance);
  const float *gamma = static_cast<const float*>(data_or_null(weight)),
              *beta = static_cast<const float*>(data_or_null(bias));
  const Tensor scale = empty_float({channels}), shift = empty_float({channels}), kept = empty_float({channels});
  const Tensor invstd = empty_float({channels});
  float *scales = mutable_floats(scale), *shifts = mutable_floats(shift);
  float *averages = mutable_floats(kept), *inverses = mutable_floats(invstd);
  for (int64_t c = 0; c < channels; ++c) {
    const float inverse = 1.0f / std::sqrt(variances[c] + static_cast<float>(step.eps));
    const float factor = gamma != nullptr ? inverse * gamma[c] : inverse;
    scales[c] = factor;
    shifts[c] = (beta != nullptr ? beta[c] : 0.0f) - means[c] * factor;
    averages[c] = means[c];
    inverses[c] = inverse;
  }
  made.insert(made.end(), {scale, shift, kept, invstd});
}

void add_statistics(const Step& step, const std::optional<Tensor>& sums, int64_t count, const Tensors& parameters,
                    const Tensors& running, Tensors& made) {
  const auto norm = static_cast<std::size_t>(step.norm);
  STD_TORCH_CHECK(running.size() >= 2 * norm + 2, "running must have 2 tensors a norm");
  const Tensor &mean = running[2 * norm], &variance = running[2 * norm + 1];
  if (step.statistics == Statistics::kRunning) {
    add_frozen(step, parameters, mean, variance, made);
    return;
  }
  std::optional<Tensor> updated_mean, updated_variance;
  if (step.statistics == Statistics::kBatchAndUpdate) {
    updated_mean = mean;
    updated_variance = variance;
  }
  const auto [scale, shift, average, invstd] = stage_statistics(
      *sums, count, training::at(parameters, step.norm_weight), training::at(parameters, step.norm_bias), step.eps,
      step.momentum, updated_mean, updated_variance);
  made.insert(made.end(), {scale, shift, average, invstd});
}

// f(x) for every element of a small tensor.
template <class F>
Tensor each(const Tensor& x, const F& f) {
  const Tensor dense = to_contiguous(x);
  const Tensor out = empty_contiguous(dense);
  const float* values = floats(dense);
  float* results = mutable_floats(out);
  for (int64_t i = 0, count = dense.numel(); i < count; ++i) results[i] = f(values[i]);
  return out;
}

}  // namespace

Tensors training_program(const Tensors& inputs, const Tensors& parameters, const Tensors& running,
                         const std::vector<int64_t>& table, const std::vector<int64_t>& activations,
                         const std::vector<double>& norms, bool rounds) {
  const RoundedProducts products(rounds);
  const auto steps = training::read_steps(table, inputs.size(), activations.size(), parameters.size(), norms);
  std::vector<Value> values = training::make_values(inputs, activations);
  Tensors made;
  for (const Step& step : steps) {
    const Value& source = values[step.source];
    const Tensor& raw = training::raw_of(source);
    Value& target = values[step.target];
    std::optional<Tensor> sums;
    switch (step.kind) {
      case Kind::kConv: {
        if (!step.parts.empty()) {
          const training::Mixed mixed = training::mixed_of(step, parameters);
          auto [y, found] = mixed_stage(raw, source.scale, source.shift, source.activation, mixed.weights, mixed.bias,
                                        mixed.stride, mixed.padding, mixed.dilation);
          target.raw = y;
          sums = found;
          break;
        }
        const auto weight = *training::at(parameters, step.weight);
        const auto bias = training::at(parameters, step.bias);
        if (source.product != nullptr) {
          const Value& inner = values[source.product->source];
          const Tensor& gate = training::raw_of(values[static_cast<std::size_t>(source.product->operand)]);
          auto [y, found] = gated_pointwise_stage(training::raw_of(inner), inner.scale, inner.shift, inner.activation,
                                                  training::per_image(gate), weight, bias);
          target.raw = y;
          sums = found;
          break;
        }
        auto [y, found] =
            step.depthwise || step.dense
                ? (step.dense ? dense_stage : depthwise_stage)(raw, source.scale, source.shift, source.activation,
                                                               weight, bias, step.stride, step.padding, step.dilation)
                : pointwise_stage(training::with_axes(raw), source.scale, source.shift, source.activation,
                                  training::with_axes(weight), bias);
        target.raw = raw.dim() == 2 ? training::per_image(y) : y;
        sums = found;
        break;
      }
      case Kind::kNorm:
        STD_TORCH_CHECK(source.is_plain(), "a norm step takes a plain value");
        target.raw = raw;
        if (step.has_norm() && step.statistics != Statistics::kRunning) sums = stage_sums(raw);
        break;
      case Kind::kOutput: {
        std::optional<Tensor> residual;
        if (step.operand >= 0) residual = training::raw_of(values[static_cast<std::size_t>(step.operand)]);
        target.raw = stage_output(raw, source.scale, source.shift, source.activation, residual);
        break;
      }
      case Kind::kPool: {
        const Tensor means = stage_pool(raw, source.scale, source.shift, source.activation);
        target.raw = step.option ? training::with_pixel(means) : means;
        break;
      }
      case Kind::kGate:
        STD_TORCH_CHECK(source.is_plain(), "a gate step takes a plain value");
        if (step.option) {
          target.raw = each(raw, [](float x) { return std::fmin(std::fmax(x + 3.0f, 0.0f), 6.0f) / 6.0f; });
        } else {
          target.raw = each(raw, [](float x) { return 1.0f / (1.0f + std::exp(-x)); });
        }
        break;
      case Kind::kGated: {
        if (step.is_loaded) {
          target.raw = empty_float({0});
          target.product = &step;
          break;
        }
        const Tensor& gate = training::raw_of(values[static_cast<std::size_t>(step.operand)]);
        target.raw = stage_gate(raw, source.scale, source.shift, source.activation, training::per_image(gate));
        break;
      }
      case Kind::kPart:
        break;
    }
    if (step.own_tensors() > 0) made.push_back(*target.raw);
    if (step.has_norm()) {
      add_statistics(step, sums, training::pixels_of(*target.raw), parameters, running, made);
      target.scale = made[made.size() - 4];
      target.shift = made[made.size() - 3];
    }
  }
  return made;
}

}  // namespace dwsep
