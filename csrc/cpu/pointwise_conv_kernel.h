// A 1x1 convolution with packed weights, bias, activation and residual: inference.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"

namespace dwsep {

// Where packed weights and their bias are, and what the kernels run over.
struct PackedPointwise {
  int64_t inner;   // input channels, padded to whole vectors
  int64_t blocks;  // of output channels
  const float* weights;
  const float* bias;

  PackedPointwise(const KernelTable& table, int64_t channels, int64_t out_channels, const float* packed);
  // Pixels of a panel that fills half of L1, but no fewer than two micro-kernels take.
  int64_t pixels_in_l1(const KernelTable& table) const;
  // The same of a quarter of L2.
  int64_t pixels_in_l2(const KernelTable& table) const;
};

// Floats of packed weights: K blocks [inner, padded][column], then the bias.
int64_t packed_pointwise_size(const KernelTable& table, int64_t channels, int64_t out_channels);
// With `pairs`, which the table must have, the weights are its pairs in the first half of their place.
void pack_pointwise(const KernelTable& table, const float* weight, const float* bias, int64_t channels,
                    int64_t out_channels, bool pairs, float* packed);

// Channels-last floats: x (pixels, channels), residual, if any, and out (pixels, out_channels). Each may be some of the
// channels of something wider; the residual's pixels lie as far apart as the output's.
struct PointwiseConv {
  int64_t pixels;
  int64_t channels;
  int64_t out_channels;
  const float* x;
  const float* packed;
  Activation activation;
  const float* residual;
  float* out;
  const float* gate = nullptr;  // (images, channels), times x; or null
  int64_t image_pixels = 0;     // of each image, where there is a gate
  bool pairs = false;           // how the weights were packed
  int64_t x_stride = 0;         // floats from a pixel of x to the next; 0 for its channels, and so on
  int64_t out_stride = 0;
  int64_t gate_stride = 0;
};

void pointwise_conv_forward(PointwiseConv conv);

}  // namespace dwsep
