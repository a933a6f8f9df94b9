#include "cpu/depthwise_lines.h"

#include <algorithm>
#include <cstdint>

#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tile.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

float value(const void* base, ElementType type, int64_t index) {
  if (base == nullptr) return 0.0f;
  if (type == ElementType::kFloat32) return static_cast<const float*>(base)[index];
  return as_float(static_cast<const uint16_t*>(base)[index]);
}

}  // namespace

bool lines_pay(const ConvProblem& problem, const Strides& x_strides, const Strides& out_strides) {
  const bool one_axis = problem.input[0] == 1 && problem.input[1] == 1 && problem.output[0] == 1 &&
                        problem.output[1] == 1 && problem.kernel[0] == 1 && problem.kernel[1] == 1 &&
                        problem.pad_low[0] == 0 && problem.pad_low[1] == 0;
  return one_axis && problem.stride[2] == 1 && problem.kernel[2] <= kMostLineTaps && x_strides.axis[2] == 1 &&
         out_strides.axis[2] == 1;
}

void depthwise_lines_forward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const void* x, const Strides& x_strides, void* out, const Strides& out_strides) {
  const KernelTable& table = kernels();
  const ElementType type = problem.element_type;
  const int64_t size = type == ElementType::kFloat32 ? 4 : 2;
  // What fits the last cache with its input is there for whoever reads it next.
  const bool outgrown =
      problem.batch * (problem.channels * problem.input[2] + problem.inner_channels * problem.output[2]) * size >
      kCachedBytes;
  const bool stream = outgrown &&
                      streams_from_planes(type, out, out_strides, problem.batch * problem.output[2],
                                          problem.inner_channels, kForwardStreamBytes) &&
                      reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
  // Lines until there is work enough for a thread to be woken up.
  constexpr int64_t kGrainElements = 8192;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, problem.output[2]));
  parallel_for(problem.batch * problem.inner_channels, grain, [&](int64_t begin, int64_t end) {
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
