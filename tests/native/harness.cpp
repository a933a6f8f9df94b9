// The kernels without torch: every instruction set of the build against a naive loop, bit for bit on small integers.
// Built by tests/kernels/test_portability.py, for CPUs which are emulated, and for vectors which this CPU lacks.

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/depthwise_conv_kernel.h"
#include "cpu/isa.h"
#include "cpu/separable_conv_kernel.h"

namespace {

using dwsep::Activation;
using dwsep::ConvProblem;
using dwsep::Residual;

uint64_t state = 1;
int64_t draw(int64_t low, int64_t high) {  // inclusive
  state = state * 6364136223846793005u + 1442695040888963407u;
  return low + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(high - low + 1));
}

std::vector<float> integers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(draw(-4, 4));
  return values;
}

float relu(float value) { return value < 0 ? 0 : value; }

ConvProblem draw_problem() {
  ConvProblem p = {};
  p.batch = draw(1, 2);
  p.channels = draw(1, 40);
  p.multiplier = draw(0, 3) == 0 ? draw(2, 3) : 1;
  p.inner_channels = p.channels * p.multiplier;
  p.out_channels = draw(1, 40);
  for (int axis = 0; axis < 3; ++axis) {
    const bool used = axis > 0 || draw(0, 3) == 0;
    p.kernel[axis] = used ? draw(1, 4) : 1;
    p.stride[axis] = used ? draw(1, 3) : 1;
    p.dilation[axis] = used ? draw(1, 3) : 1;
    p.input[axis] = used ? draw(3, 12) : 1;
    p.pad_low[axis] = used ? draw(-1, 4) : 0;
    int64_t high = used ? draw(-1, 4) : 0;
    const int64_t extent = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
    if (p.input[axis] + p.pad_low[axis] + high < extent) high = extent - p.input[axis] - p.pad_low[axis];
    p.output[axis] = (p.input[axis] + p.pad_low[axis] + high - extent) / p.stride[axis] + 1;
  }
  return p;
}

std::vector<float> naive_depthwise(const ConvProblem& p, const std::vector<float>& x, const std::vector<float>& weight,
                                   const std::vector<float>& bias) {
  std::vector<float> out;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t od = 0; od < p.output[0]; ++od)
      for (int64_t oh = 0; oh < p.output[1]; ++oh)
        for (int64_t ow = 0; ow < p.output[2]; ++ow)
          for (int64_t c = 0; c < p.inner_channels; ++c) {
            float sum = bias[static_cast<size_t>(c)];
            for (int64_t kd = 0; kd < p.kernel[0]; ++kd)
              for (int64_t kh = 0; kh < p.kernel[1]; ++kh)
                for (int64_t kw = 0; kw < p.kernel[2]; ++kw) {
                  const int64_t d = od * p.stride[0] - p.pad_low[0] + kd * p.dilation[0];
                  const int64_t h = oh * p.stride[1] - p.pad_low[1] + kh * p.dilation[1];
                  const int64_t w = ow * p.stride[2] - p.pad_low[2] + kw * p.dilation[2];
                  if (d < 0 || d >= p.input[0] || h < 0 || h >= p.input[1] || w < 0 || w >= p.input[2]) continue;
                  const int64_t pixel = ((n * p.input[0] + d) * p.input[1] + h) * p.input[2] + w;
                  const int64_t tap = ((c * p.kernel[0] + kd) * p.kernel[1] + kh) * p.kernel[2] + kw;
                  sum +=
                      x[static_cast<size_t>(pixel * p.channels + c / p.multiplier)] * weight[static_cast<size_t>(tap)];
                }
            out.push_back(relu(sum));
          }
  return out;
}

std::vector<float> naive_pointwise(const ConvProblem& p, const std::vector<float>& inner,
                                   const std::vector<float>& weight, const std::vector<float>& bias) {
  std::vector<float> out;
  for (size_t pixel = 0; pixel < inner.size(); pixel += static_cast<size_t>(p.inner_channels))
    for (int64_t k = 0; k < p.out_channels; ++k) {
      float sum = bias[static_cast<size_t>(k)];
      for (int64_t c = 0; c < p.inner_channels; ++c)
        sum += inner[pixel + static_cast<size_t>(c)] * weight[static_cast<size_t>(k * p.inner_channels + c)];
      out.push_back(sum);
    }
  return out;
}

bool check(const ConvProblem& p) {
  const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const std::vector<float> x = integers(p.batch * p.input[0] * p.input[1] * p.input[2] * p.channels);
  const std::vector<float> depthwise = integers(p.inner_channels * taps), bias = integers(p.inner_channels);
  const std::vector<float> pointwise = integers(p.out_channels * p.inner_channels);
  const std::vector<float> pointwise_bias = integers(p.out_channels);
  const dwsep::WeightSources sources = {depthwise.data(), bias.data(), pointwise.data(), pointwise_bias.data()};

  const std::vector<float> inner = naive_depthwise(p, x, depthwise, bias);
  std::vector<float> out(inner.size(), -1e30f);
  dwsep::depthwise_conv_forward(p, sources, Activation::kRelu, x.data(), out.data());
  if (out != inner) return false;

  const std::vector<float> expected = naive_pointwise(p, inner, pointwise, pointwise_bias);
  out.assign(expected.size(), -1e30f);
  const dwsep::SeparableOptions options = {Activation::kRelu, Activation::kNone, Residual::kNone};
  dwsep::separable_conv_forward(p, dwsep::pack_weights(p, dwsep::kernels(), sources), options, x.data(), out.data());
  return out == expected;
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 100;
  std::istringstream names(dwsep::supported_isas());
  for (std::string isa; std::getline(names, isa, ',');) {
    if (!dwsep::set_isa(isa)) return 2;
    for (int i = 0; i < count; ++i) {
      const uint64_t seed = state;
      if (!check(draw_problem())) {
        std::printf("%s: problem %d (state %llu) differs\n", isa.c_str(), i, static_cast<unsigned long long>(seed));
        return 1;
      }
    }
    std::printf("%s %d\n", isa.c_str(), count);
  }
  return 0;
}
