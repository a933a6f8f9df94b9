#include "cpu/depthwise_lines.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tile.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

float value(const void* base, ElementType type, int64_t index) {
  if (base == nullptr) return 0.0f;
  if (type == ElementType::kFloat32) return static_cast<const float*>(base)[index];
  return as_float(static_cast<const uint16_t*>(base)[index]);
}

// Lines of so many elements until there is work enough for a thread to be woken up.
int64_t grain_of(int64_t elements) {
  constexpr int64_t kGrainElements = 8192;
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements));
}

}  // namespace

bool lines_pay(const ConvProblem& problem, const Strides& x_strides, const Strides& out_strides) {
  const bool one_axis = problem.input[0] == 1 && problem.input[1] == 1 && problem.output[0] == 1 &&
                        problem.output[1] == 1 && problem.kernel[0] == 1 && problem.kernel[1] == 1 &&
                        problem.pad_low[0] == 0 && problem.pad_low[1] == 0;
  return one_axis && problem.stride[2] == 1 && problem.kernel[2] <= kMostLineTaps && x_strides.axis[2] == 1 &&
         out_strides.axis[2] == 1;
}

bool lines_pay_backward(const ConvProblem& problem, const DepthwiseBackwardTensors& tensors) {
  // A channel is one thread's, so that its sums need no parts. The rest is measured: a line's ends take time, and all
  // taps of many that a vector of planes reads are in registers.
  constexpr int64_t kLeastChannels = 16, kLeastOutputs = 256, kMostTaps = 8;
  const bool contiguous = tensors.x_gradient == nullptr || tensors.x_gradient_strides.axis[2] == 1;
  return problem.element_type == ElementType::kFloat32 && problem.multiplier == 1 &&
         problem.channels >= kLeastChannels && problem.output[2] >= kLeastOutputs && problem.kernel[2] <= kMostTaps &&
         contiguous && lines_pay(problem, tensors.x_strides, tensors.gradient_strides);
}

void depthwise_lines_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                              const DepthwiseBackwardTensors& tensors) {
  const KernelTable& table = kernels();
  const int64_t taps = problem.kernel[2], input = problem.input[2], output = problem.output[2];
  const bool stream = streams_from_planes(problem.element_type, tensors.x_gradient, tensors.x_gradient_strides,
                                          problem.batch * input, problem.channels, kTrainingStreamBytes);
  const auto* bias = static_cast<const float*>(weights.depthwise_bias);
  const bool wants_sums = tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr;
  parallel_for(problem.channels, grain_of(problem.batch * output), [&](int64_t begin, int64_t end) {
    const int64_t whole = (output + table.lanes - 1) / table.lanes * table.lanes;
    CorrelateLineBack line = {};
    line.before = scratch(Scratch::kPanel, static_cast<std::size_t>(whole));
    line.input = input;
    line.output = output;
    line.taps = taps;
    line.dilation = problem.dilation[2];
    line.pad_low = problem.pad_low[2];
    line.activation = activation;
    line.stream = stream;
    // Image by image: the lines of neighbouring channels are one stretch of memory.
    const int64_t sums_of_channel = (taps + 1) * table.lanes;
    std::vector<double> sums(static_cast<std::size_t>((end - begin) * sums_of_channel));
    for (int64_t image = 0; image < problem.batch; ++image) {
      for (int64_t channel = begin; channel < end; ++channel) {
        const auto place = [&](const Strides& strides) { return image * strides.image + channel * strides.channel; };
        line.source = static_cast<const float*>(tensors.x) + place(tensors.x_strides);
        line.gradient = static_cast<const float*>(tensors.gradient) + place(tensors.gradient_strides);
        if (tensors.x_gradient != nullptr)
          line.x_gradient = static_cast<float*>(tensors.x_gradient) + place(tensors.x_gradient_strides);
        line.weights = static_cast<const float*>(weights.depthwise) + channel * taps;
        line.bias = bias != nullptr ? bias[channel] : 0.0f;
        if (wants_sums) line.sums = sums.data() + (channel - begin) * sums_of_channel;
        table.correlate_line_back(line);
      }
    }
    for (int64_t channel = begin; channel < end; ++channel) {
      const double* of_channel = sums.data() + (channel - begin) * sums_of_channel;
      const auto sum = [&](int64_t tap) {
        return static_cast<float>(
            std::accumulate(of_channel + tap * table.lanes, of_channel + (tap + 1) * table.lanes, 0.0));
      };
      for (int64_t tap = 0; tensors.weight_gradient != nullptr && tap < taps; ++tap)
        static_cast<float*>(tensors.weight_gradient)[channel * taps + tap] = sum(tap);
      if (tensors.bias_gradient != nullptr) static_cast<float*>(tensors.bias_gradient)[channel] = sum(taps);
    }
    if (stream) table.finish_streams();
  });
}

void depthwise_lines_forward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const void* x, const Strides& x_strides, void* out, const Strides& out_strides) {
  const KernelTable& table = kernels();
  const ElementType type = problem.element_type;
  const int64_t size = element_bytes(type);
  // What fits the last cache with its input is there for whoever reads it next.
  const bool outgrown =
      problem.batch * (problem.channels * problem.input[2] + problem.inner_channels * problem.output[2]) * size >
      kCachedBytes;
  const bool stream = outgrown && streams_from_planes(type, out, out_strides, problem.batch * problem.output[2],
                                                      problem.inner_channels, kForwardStreamBytes);
  parallel_for(problem.batch * problem.inner_channels, grain_of(problem.output[2]), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / problem.inner_channels, inner = index % problem.inner_channels;
      CorrelateLine line = {};
      line.element_type = type;
      line.source = advanced(x, (image * x_strides.image + inner / problem.multiplier * x_strides.channel) * size);
      line.input = problem.input[2];
      line.out = advanced(out, (image * out_strides.image + inner * out_strides.channel) * size);
      line.output = problem.output[2];
      line.weights = advanced(weights.depthwise, inner * problem.kernel[2] * size);
      line.taps = problem.kernel[2];
      line.dilation = problem.dilation[2];
      line.pad_low = problem.pad_low[2];
      line.bias = value(weights.depthwise_bias, type, inner);
      line.activation = activation;
      line.stream = stream;
      table.correlate_line(line);
    }
    if (stream) table.finish_streams();
  });
}

}  // namespace dwsep
