#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <utility>

#include "ops/stages.h"
#include "ops/training_gradient.h"
#include "ops/training_program.h"
#include "ops/training_steps.h"

namespace dwsep {
namespace {

using training::Kind;
using training::Statistics;
using training::Step;
using training::Value;

using Tensors = std::vector<Tensor>;

class Backward {
 public:
  Backward(const Tensors& inputs, const Tensors& parameters, const Tensors& made, const std::vector<Step>& steps,
           const std::vector<int64_t>& activations, const std::vector<bool>& wants)
      : inputs_(inputs.size()),
        parameters_(parameters),
        made_(made),
        steps_(steps),
        wants_(wants),
        values_(training::make_values(inputs, activations)),
        raw_(activations.size()),
        affine_(activations.size()),
        makers_(activations.size(), steps.size()),
        of_parameters_(parameters.size()) {
    STD_TORCH_CHECK(wants.size() == inputs.size() + parameters.size(),
                    "wants must have an entry for each input and parameter");
    std::size_t place = 0;
    for (const Step& step : steps) {
      places_.push_back(place);
      place += step.made();
      STD_TORCH_CHECK(place <= made.size(), "made must hold what the steps made");
      makers_[step.target] = places_.size() - 1;
      Value& target = values_[step.target];
      target.raw = step.kind == Kind::kNorm ? values_[step.source].raw : made[places_.back()];
      if (step.is_loaded) target.product = &step;
      if (step.has_norm()) {
        target.scale = made[place - 4];
        target.shift = made[place - 3];
      }
    }
    find_required();
  }

  void give(int64_t value, const Tensor& grad) {
    STD_TORCH_CHECK(value >= 0 && value < static_cast<int64_t>(raw_.size()), "outputs name a value that is none");
    if (grad.numel() == 0) return;
    const Tensor last = grad.dim() == 4 ? to_channels_last(grad) : to_contiguous(grad);
    raw_[static_cast<std::size_t>(value)].add(last, false);
  }

  void run() {
    for (std::size_t i = steps_.size(); i-- > 0;) run_step(i);
  }

  Tensors results() const {
    Tensors found;
    for (std::size_t i = 0; i < wants_.size(); ++i) {
      const Gradient& grad = i < inputs_ ? raw_[i] : of_parameters_[i - inputs_];
      if (!wants_[i] || !grad.tensor.has_value()) {
        found.push_back(empty_float({0}));
      } else {
        found.push_back(grad.own ? *grad.tensor : torch::stable::clone(*grad.tensor));
      }
    }
    return found;
  }

 private:
  std::size_t inputs_;
  const Tensors& parameters_;
  const Tensors& made_;
  const std::vector<Step>& steps_;
  const std::vector<bool>& wants_;
  std::vector<Value> values_;
  std::vector<Gradient> raw_, affine_;  // of every value's raw tensor; of its scale and shift
  std::vector<std::size_t> makers_;     // the step that makes a value; none makes an input
  std::vector<Gradient> of_parameters_;
  std::vector<std::size_t> places_;
  std::vector<bool> requires_;
  // Of values that were pooled, too: the gradient of their product with a gate, and the gate.
  std::map<std::size_t, std::pair<Tensor, Tensor>> products_;
  std::map<const Step*, Gradient> gates_;  // gradients of the gates of products that were not made

  bool wants_parameter(int64_t index) const { return index >= 0 && wants_[inputs_ + static_cast<std::size_t>(index)]; }

  bool wants_convolution(const Step& step) const {
    const auto wanted = [&](const auto& part) { return wants_parameter(part.weight) || wants_parameter(part.bias); };
    return wanted(step) || std::any_of(step.parts.begin(), step.parts.end(), wanted);
  }

  void find_required() {
    requires_.assign(values_.size(), false);
    for (std::size_t i = 0; i < inputs_; ++i) requires_[i] = wants_[i];
    for (const Step& step : steps_) {
      const bool operand = step.operand >= 0 && requires_[static_cast<std::size_t>(step.operand)];
      requires_[step.target] = requires_[step.source] || operand || wants_convolution(step) ||
                               wants_parameter(step.norm_weight) || wants_parameter(step.norm_bias);
    }
  }

  void give_parameter(int64_t index, const Tensor& grad) {
    if (wants_parameter(index)) of_parameters_[static_cast<std::size_t>(index)].add(grad, true);
  }

  void pass(std::size_t value, const StageResult& found) {
    raw_[value].add(std::get<0>(found), true);
    affine_[value].add(std::get<1>(found), true);
  }

  void run_pool(const Step& step, const std::optional<Tensor>& grad) {
    std::optional<Tensor> product, gate, of_means;
    const auto waiting = products_.find(step.source);
    if (waiting != products_.end()) {
      product = waiting->second.first;
      gate = waiting->second.second;
      products_.erase(waiting);
    }
    if (grad.has_value()) of_means = training::per_image(*grad);
    if (!requires_[step.source] || (!grad.has_value() && !product.has_value())) return;
    make_again(step.source);
    const Value& source = values_[step.source];
    pass(step.source, stage_squeeze_backward(product, gate, of_means, training::raw_of(source), source.scale,
                                             source.shift, source.activation));
  }

  // A product with a gate which was not kept: it is made of what was.
  void make_again(std::size_t number) {
    Value& value = values_[number];
    if (value.product != nullptr) return make_again(value.product->source);
    if (makers_[number] == steps_.size() || training::raw_of(value).numel() > 0) return;
    const Step& maker = steps_[makers_[number]];
    if (maker.kind != Kind::kGated && maker.kind != Kind::kNorm) return;
    make_again(maker.source);
    if (maker.kind == Kind::kNorm) {  // has the raw tensor of what it takes
      value.raw = values_[maker.source].raw;
      return;
    }
    make_again(static_cast<std::size_t>(maker.operand));
    const Value& source = values_[maker.source];
    const Tensor& gate = training::raw_of(values_[static_cast<std::size_t>(maker.operand)]);
    value.raw =
        stage_gate(training::raw_of(source), source.scale, source.shift, source.activation, training::per_image(gate));
  }

  void run_step(std::size_t number) {
    const Step& step = steps_[number];
    const std::size_t place = places_[number];
    // What flows on from here needs the step's own no more.
    const Gradient grad = std::exchange(raw_[step.target], {});
    const Gradient affine = std::exchange(affine_[step.target], {});
    if (step.kind == Kind::kPool) return run_pool(step, grad.tensor);
    if ((!grad.tensor.has_value() && !affine.tensor.has_value()) || !requires_[step.target]) return;
    make_again(step.source);
    if (step.kind == Kind::kNorm) make_again(step.target);
    std::optional<Tensor> correction;
    if (step.has_norm() && affine.tensor.has_value()) {
      const std::size_t end = place + step.made();
      const Tensor& like = grad.tensor.has_value() ? *grad.tensor : training::raw_of(values_[step.target]);
      const auto [found, of_weight, of_bias] =
          stage_correction(*affine.tensor, made_[end - 2], made_[end - 1], training::at(parameters_, step.norm_weight),
                           training::pixels_of(like));
      give_parameter(step.norm_weight, of_weight);
      give_parameter(step.norm_bias, of_bias);
      if (step.statistics != Statistics::kRunning) correction = found;
    }
    if (grad.tensor.has_value()) {
      if (run_expanded(number, *grad.tensor, correction)) return;
      run_with(step, *grad.tensor, grad.own, correction);
    } else if (correction.has_value()) {
      const Tensor& raw = training::raw_of(values_[step.target]);
      const Tensor zeros = torch::stable::fill_(empty_stage_output(raw.size(0), raw.size(1), spatial_of(raw)), 0.0);
      run_with(step, zeros, true, correction);
    }
  }

  void run_with(const Step& step, const Tensor& grad, bool own, const std::optional<Tensor>& correction) {
    const Value& source = values_[step.source];
    switch (step.kind) {
      case Kind::kConv:
        return run_conv(step, source, grad, correction);
      case Kind::kNorm:
        if (!requires_[step.source]) return;
        if (correction.has_value()) {
          raw_[step.source].add(stage_corrected(grad, training::raw_of(source), *correction), true);
        } else {
          raw_[step.source].add(grad, own);
        }
        return;
      case Kind::kOutput: {
        const bool wants_operand = step.operand >= 0 && requires_[static_cast<std::size_t>(step.operand)];
        const bool shared = source.is_plain() && wants_operand && requires_[step.source];
        if (requires_[step.source]) {
          if (source.is_plain()) {
            raw_[step.source].add(grad, own && !shared);
          } else {
            pass(step.source,
                 stage_output_backward(grad, training::raw_of(source), source.scale, source.shift, source.activation));
          }
        }
        if (wants_operand) raw_[static_cast<std::size_t>(step.operand)].add(grad, own && !shared);
        return;
      }
      case Kind::kGate:
        return run_gate(step, source, grad);
      case Kind::kGated:
        return run_gated(step, source, grad);
      case Kind::kPool:
      case Kind::kPart:
        return;
    }
  }

  void run_conv(const Step& step, const Value& source, const Tensor& grad, const std::optional<Tensor>& correction) {
    const std::vector<bool> mask = {requires_[step.source], wants_convolution(step)};
    if (!mask[0] && !mask[1]) return;
    const Tensor& y = correction.has_value() ? training::raw_of(values_[step.target]) : grad;
    if (source.product != nullptr) return run_product(step, *source.product, grad, y, correction, mask);
    const Tensor& x = training::raw_of(source);
    if (!step.parts.empty()) return run_mixed(step, source, grad, y, correction, mask);
    const Tensor& weight = parameters_[static_cast<std::size_t>(step.weight)];
    const bool has_bias = step.bias >= 0;
    const auto [of_x, of_affine, of_weight, of_bias] =
        step.depthwise || step.dense
            ? (step.dense ? dense_stage_backward : depthwise_stage_backward)(
                  grad, y, correction, x, source.scale, source.shift, source.activation, weight, has_bias, step.stride,
                  step.padding, step.dilation, mask)
            : pointwise_stage_backward(training::with_axes(grad), training::with_axes(y), correction,
                                       training::with_axes(x), source.scale, source.shift, source.activation,
                                       training::with_axes(weight), has_bias, mask);
    const auto as_given = [&](const Tensor& found) {
      return x.dim() == 2 && found.dim() == 4 ? training::per_image(found) : found;
    };
    raw_[step.source].add(as_given(of_x), true);
    affine_[step.source].add(of_affine, true);
    give_parameter(step.weight, as_given(of_weight));
    give_parameter(step.bias, of_bias);
  }

  // A pointwise convolution of a product that was not made.
  void run_product(const Step& step, const Step& product, const Tensor& grad, const Tensor& y,
                   const std::optional<Tensor>& correction, const std::vector<bool>& mask) {
    const Value& inner = values_[product.source];
    const Tensor gate = training::per_image(training::raw_of(values_[static_cast<std::size_t>(product.operand)]));
    const auto [of_product, of_gate, of_weight, of_bias] = gated_pointwise_stage_backward(
        grad, y, correction, training::raw_of(inner), inner.scale, inner.shift, inner.activation, gate,
        parameters_[static_cast<std::size_t>(step.weight)], step.bias >= 0, mask);
    raw_[step.source].add(of_product, true);
    gates_[&product].add(of_gate, true);
    give_parameter(step.weight, of_weight);
    give_parameter(step.bias, of_bias);
  }

  // The depthwise convolution together with the pointwise one before it, if nobody else takes what is between them.
  bool run_expanded(std::size_t number, const Tensor& grad, const std::optional<Tensor>& correction) {
    if (number == 0) return false;
    const Step &step = steps_[number], &expand = steps_[number - 1];
    if (step.kind != Kind::kConv || !step.depthwise || !step.parts.empty()) return false;
    if (expand.kind != Kind::kConv || expand.depthwise || expand.dense || !expand.parts.empty()) return false;
    if (expand.bias >= 0) return false;
    if (!expand.has_norm() || expand.statistics == Statistics::kRunning || expand.target != step.source) return false;
    if (!wants_convolution(step) || !wants_convolution(expand)) return false;
    if (raw_[step.source].tensor.has_value() || affine_[step.source].tensor.has_value()) return false;
    const Value &source = values_[expand.source], &expanded = values_[expand.target];
    const std::size_t end = places_[number - 1] + expand.made();
    const Tensor &x = training::raw_of(source), &wide = training::raw_of(expanded);
    const Tensor& depthwise = parameters_[static_cast<std::size_t>(step.weight)];
    if (x.dim() != 4 || source.activation != "none") return false;
    if (!expanded_stage_pays(x, wide, depthwise, step.stride, step.padding, step.dilation)) return false;
    const auto [of_x, of_affine, of_weight, of_norm_weight, of_norm_bias, of_depthwise, of_bias] =
        expanded_stage_backward(
            grad, correction.has_value() ? training::raw_of(values_[step.target]) : grad, correction, x, source.scale,
            source.shift, parameters_[static_cast<std::size_t>(expand.weight)], wide, *expanded.scale, *expanded.shift,
            made_[end - 2], made_[end - 1], training::at(parameters_, expand.norm_weight), expanded.activation,
            depthwise, step.bias >= 0, step.stride, step.padding, step.dilation, requires_[expand.source]);
    give_parameter(step.weight, of_depthwise);
    give_parameter(step.bias, of_bias);
    give_parameter(expand.norm_weight, of_norm_weight);
    give_parameter(expand.norm_bias, of_norm_bias);
    give_parameter(expand.weight, of_weight);
    raw_[expand.source].add(of_x, true);
    affine_[expand.source].add(of_affine, true);
    return true;
  }

  void run_mixed(const Step& step, const Value& source, const Tensor& grad, const Tensor& y,
                 const std::optional<Tensor>& correction, const std::vector<bool>& mask) {
    const training::Mixed mixed = training::mixed_of(step, parameters_);
    const auto [of_x, of_affine, of_weights, of_bias] = mixed_stage_backward(
        grad, y, correction, training::raw_of(source), source.scale, source.shift, source.activation, mixed.weights,
        mixed.bias.has_value(), mixed.stride, mixed.padding, mixed.dilation, mask);
    raw_[step.source].add(of_x, true);
    affine_[step.source].add(of_affine, true);
    int64_t first = 0;
    for (std::size_t i = 0; i < of_weights.size(); ++i) {
      give_parameter(i == 0 ? step.weight : step.parts[i - 1].weight, of_weights[i]);
      const int64_t bias = i == 0 ? step.bias : step.parts[i - 1].bias, count = mixed.weights[i].size(0);
      if (wants_parameter(bias)) {
        const Tensor own = empty_float({count});
        std::copy_n(floats(of_bias) + first, count, mutable_floats(own));
        give_parameter(bias, own);
      }
      first += count;
    }
  }

  void run_gate(const Step& step, const Value& source, const Tensor& grad) {
    const Tensor x = to_contiguous(training::raw_of(source));
    const Tensor y = to_contiguous(training::raw_of(values_[step.target]));
    const Tensor g = to_contiguous(grad);
    const Tensor out = empty_contiguous(x);
    const float *at = floats(x), *value = floats(y), *by = floats(g);
    float* target = mutable_floats(out);
    for (int64_t i = 0, count = x.numel(); i < count; ++i) {
      const bool inside = at[i] > -3.0f && at[i] < 3.0f;
      target[i] = step.option ? (inside ? by[i] / 6.0f : 0.0f) : by[i] * value[i] * (1.0f - value[i]);
    }
    raw_[step.source].add(out, true);
  }

  void run_gated(const Step& step, const Value& source, const Tensor& grad) {
    const auto operand = static_cast<std::size_t>(step.operand);
    const Tensor& x = training::raw_of(source);
    const Tensor gate = training::per_image(training::raw_of(values_[operand]));
    if (requires_[operand]) {
      const auto known = gates_.find(&step);
      const Tensor of_gate = known != gates_.end()
                                 ? *known->second.tensor
                                 : stage_gate_gradient(grad, x, source.scale, source.shift, source.activation);
      raw_[operand].add(training::raw_of(values_[operand]).dim() == 4 ? training::with_pixel(of_gate) : of_gate, true);
    }
    if (!requires_[step.source]) return;
    if (step.option && products_.count(step.source) == 0) {
      products_.emplace(step.source, std::make_pair(grad, gate));
    } else {
      pass(step.source,
           stage_squeeze_backward(grad, gate, std::nullopt, x, source.scale, source.shift, source.activation));
    }
  }
};

}  // namespace

Tensors training_program_backward(const Tensors& grads, const Tensors& inputs, const Tensors& parameters,
                                  const Tensors& made, const std::vector<int64_t>& table,
                                  const std::vector<int64_t>& activations, const std::vector<double>& norms,
                                  const std::vector<int64_t>& outputs, const std::vector<bool>& wants, bool rounds) {
  const RoundedProducts products(rounds);
  STD_TORCH_CHECK(grads.size() == outputs.size(), "grads must have an entry for each of outputs");
  const auto steps = training::read_steps(table, inputs.size(), activations.size(), parameters.size(), norms);
  Backward backward(inputs, parameters, made, steps, activations, wants);
  for (std::size_t i = 0; i < grads.size(); ++i) backward.give(outputs[i], grads[i]);
  backward.run();
  return backward.results();
}

}  // namespace dwsep
