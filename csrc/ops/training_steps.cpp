#include "ops/training_steps.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace dwsep::training {
namespace {

constexpr std::size_t kColumns = 19;

}  // namespace

std::vector<Step> read_steps(const std::vector<int64_t>& table, std::size_t inputs, std::size_t values,
                             std::size_t parameters, const std::vector<double>& norms) {
  STD_TORCH_CHECK(table.size() % kColumns == 0, "steps must have ", kColumns, " entries a step");
  STD_TORCH_CHECK(norms.size() % 3 == 0, "norms must have 3 entries a norm");
  std::vector<bool> exists(values, false), is_loaded(values, false);
  for (std::size_t i = 0; i < inputs && i < values; ++i) exists[i] = true;
  const auto within = [](int64_t index, std::size_t size) { return index >= -1 && index < static_cast<int64_t>(size); };
  std::vector<Step> steps;
  steps.reserve(table.size() / kColumns);
  for (std::size_t i = 0; i < table.size(); i += kColumns) {
    const int64_t* row = table.data() + i;
    STD_TORCH_CHECK(row[0] >= 0 && row[0] <= static_cast<int64_t>(Kind::kPart), "a step's kind is unknown");
    const auto kind = static_cast<Kind>(row[0]);
    const auto known = [&](int64_t value) {
      return value >= 0 && within(value, values) && exists[static_cast<std::size_t>(value)];
    };
    if (kind == Kind::kPart) {
      STD_TORCH_CHECK(!steps.empty() && steps.back().kind == Kind::kConv, "a part belongs to no convolution");
      Step& whole = steps.back();
      STD_TORCH_CHECK(static_cast<int64_t>(whole.source) == row[1] && static_cast<int64_t>(whole.target) == row[2] &&
                          whole.depthwise == (row[9] == 1) && !whole.dense && row[9] != 2,
                      "a part is not like the convolution that it belongs to");
      STD_TORCH_CHECK(row[4] >= 0 && within(row[4], parameters) && within(row[5], parameters),
                      "a step's parameter does not exist");
      STD_TORCH_CHECK(!is_loaded[whole.source], "only a pointwise convolution takes a product that is not made");
      whole.parts.push_back(
          {row[4], row[5], {row[10], row[11]}, {row[14], row[15], row[16], row[17]}, {row[12], row[13]}});
      continue;
    }
    STD_TORCH_CHECK(known(row[1]), "a step takes a value that does not exist yet");
    STD_TORCH_CHECK(row[2] >= 0 && within(row[2], values) && !known(row[2]), "a step's target must be a new value");
    STD_TORCH_CHECK(row[3] == -1 || known(row[3]), "a step's operand does not exist yet");
    STD_TORCH_CHECK(kind != Kind::kGated || row[3] >= 0, "a gated step needs an operand");
    for (int column = 4; column < 8; ++column) {
      STD_TORCH_CHECK(within(row[column], parameters), "a step's parameter does not exist");
    }
    STD_TORCH_CHECK(kind != Kind::kConv || row[4] >= 0, "a convolution needs a weight");
    const bool takes_product =
        is_loaded[static_cast<std::size_t>(row[1])] || (row[3] >= 0 && is_loaded[static_cast<std::size_t>(row[3])]);
    STD_TORCH_CHECK(!takes_product || (kind == Kind::kConv && row[3] < 0 && row[9] <= 0),
                    "only a pointwise convolution takes a product that is not made");
    STD_TORCH_CHECK(within(row[8], norms.size() / 3), "a step's norm does not exist");
    STD_TORCH_CHECK(row[8] == -1 || kind == Kind::kConv || kind == Kind::kNorm, "only convolutions have norms");
    Step step = {kind,
                 static_cast<std::size_t>(row[1]),
                 static_cast<std::size_t>(row[2]),
                 row[3],
                 row[4],
                 row[5],
                 row[6],
                 row[7],
                 row[8],
                 row[9] == 1,
                 row[9] == 2,
                 {row[10], row[11]},
                 {row[14], row[15], row[16], row[17]},
                 {row[12], row[13]},
                 kind == Kind::kGated ? row[18] == 1 || row[18] == 3 : row[18] > 0,
                 Statistics::kBatch,
                 0.0,
                 0.0,
                 {},
                 kind == Kind::kGated && row[18] >= 2};
    is_loaded[step.target] = step.is_loaded;
    if (step.has_norm()) {
      const double* numbers = norms.data() + 3 * row[8];
      STD_TORCH_CHECK(numbers[0] == 0.0 || numbers[0] == 1.0 || numbers[0] == 2.0, "a norm's statistics are unknown");
      step.statistics = static_cast<Statistics>(static_cast<int>(numbers[0]));
      step.eps = numbers[1];
      step.momentum = numbers[2];
    }
    exists[step.target] = true;
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<Value> make_values(const std::vector<Tensor>& inputs, const std::vector<int64_t>& activations) {
  STD_TORCH_CHECK(inputs.size() <= activations.size(), "activations must have an entry a value");
  std::vector<Value> values(activations.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i].activation = activation_name(activations[i]);
    if (i < inputs.size()) values[i].raw = inputs[i];
  }
  return values;
}

Mixed mixed_of(const Step& step, const std::vector<Tensor>& parameters) {
  std::vector<Part> parts = {{step.weight, step.bias, step.stride, step.padding, step.dilation}};
  parts.insert(parts.end(), step.parts.begin(), step.parts.end());
  Mixed mixed;
  int64_t channels = 0;
  bool has_bias = false;
  for (const Part& part : parts) {
    mixed.weights.push_back(parameters[static_cast<std::size_t>(part.weight)]);
    STD_TORCH_CHECK(mixed.weights.back().dim() == 4, "a weight must have 4 dimensions");
    channels += mixed.weights.back().size(0);
    has_bias = has_bias || part.bias >= 0;
    if (!step.depthwise) continue;
    mixed.stride.insert(mixed.stride.end(), part.stride.begin(), part.stride.end());
    mixed.padding.insert(mixed.padding.end(), part.padding.begin(), part.padding.end());
    mixed.dilation.insert(mixed.dilation.end(), part.dilation.begin(), part.dilation.end());
  }
  if (!has_bias) return mixed;
  mixed.bias = torch::stable::fill_(empty_float({channels}), 0.0);
  int64_t first = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const int64_t count = mixed.weights[i].size(0);
    if (parts[i].bias >= 0) {
      const Tensor& bias = parameters[static_cast<std::size_t>(parts[i].bias)];
      const Tensor dense = *check_vector("bias", bias, mixed.weights[i], count);
      std::copy_n(floats(dense), count, mutable_floats(*mixed.bias) + first);
    }
    first += count;
  }
  return mixed;
}

const Tensor& raw_of(const Value& value) {
  STD_TORCH_CHECK(value.raw.has_value(), "a value was not made");
  return *value.raw;
}

int64_t pixels_of(const Tensor& x) { return x.numel() / x.size(1); }

Tensor per_image(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2 || (x.dim() == 4 && x.size(2) == 1 && x.size(3) == 1),
                  "a gate must have shape (N, C, 1, 1)");
  return x.dim() == 2 ? x : torch::stable::flatten(x, 1);
}

Tensor with_pixel(const Tensor& x) { return torch::stable::unsqueeze(torch::stable::unsqueeze(x, 2), 3); }

}  // namespace dwsep::training
