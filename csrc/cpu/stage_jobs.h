// What the kernels of training's stages take beside products: norm and activation of rows of pixels, and the way back.
// Plain data, as conv_problem.h.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

// A row of pixels of a channels-last float tensor on its way into planes: through its norm and activation, or, a
// gradient, with scale * y + shift added to it.
struct StageRow {
  const float* x;
  const float* y;      // a gradient's alone
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixel_stride;
  int64_t pixels;
  int64_t channels;
  float* plane;                 // [block][pixel][lane]
  int64_t block_stride;         // floats from a block's row to the next block's
  const float* gate = nullptr;  // per channel, times the activation; or null; none of a gradient
  float* slopes = nullptr;      // the activation's derivatives, as the plane; or null. Of SiLU and GELU without a gate
};

// The way back: from the gradient of activation(scale * x + shift) to that of x, which lies as x does.
struct StageGradientRow {
  const float* gradient;    // in planes [block][pixel][lane], or a tensor
  int64_t gradient_stride;  // floats from a pixel to the next
  int64_t block_stride;     // and from a block to the next
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixel_stride;
  int64_t pixels;
  int64_t channels;
  float* out;
  bool stream;   // store past the caches: `out`, stride and channels are whole cache lines
  double* sums;  // of the gradient before the activation times x, then of that gradient; per channel, padded
  int64_t sums_stride;
  // With `addend` the gradient is gate * gradient + addend_factor * addend, per channel; zeros for a null gradient.
  const float* gate = nullptr;
  const float* addend = nullptr;
  float addend_factor = 1.0f;
  int64_t ahead = 0;       // pixels behind the one being read, to be asked for
  int64_t out_stride = 0;  // floats from a pixel of `out` to the next; 0: as x
  // The activation's derivatives [block][pixel][lane], where they are known; null: they are computed.
  const float* slopes = nullptr;
  int64_t slopes_block_stride = 0;
};

// The way back through a product with a gate, of a row of an image's pixels in planes [block][pixel][lane]: the
// product's gradient goes to a tensor as it is, sums[channel] += gradient * values, and the values become the product.
struct GateGradientRow {
  const float* gradient;
  int64_t block_stride;  // floats from a block to the next
  float* values;
  int64_t values_block_stride;
  const float* gate;  // per channel
  int64_t pixels;
  int64_t channels;
  float* out;
  int64_t out_stride;  // floats from a pixel to the next
  bool stream;         // store past the caches: `out`, its stride and the channels are whole cache lines
  double* sums;        // padded
};

// out = activation(scale * x + shift) + residual, consecutive pixels of channels-last float tensors.
struct StageOutput {
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  const float* residual;  // or null
  int64_t pixels;
  int64_t channels;
  float* out;
  const float* gate = nullptr;  // per channel, times the activation; or null
};

// out = scale * (x - mean) / sqrt(variance + eps) + shift, with the mean and variance over a pixel's channels, of
// consecutive pixels of channels-last float tensors; out may be x.
struct LayerNormRows {
  const float* x;
  int64_t pixels;
  int64_t channels;
  const float* scale;  // per channel
  const float* shift;
  float eps;
  float* out;
};

// sums[channel] += gradient * activation(scale * x + shift), over consecutive pixels of channels-last float tensors.
struct StageProductSums {
  const float* gradient;  // null for ones
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixels;
  int64_t channels;
  double* sums;   // padded
  int64_t ahead;  // pixels behind the one being read, to be asked for
};

// A row of pixels of one block of channels, computed, on its way to a channels-last tensor; its sums are wanted.
struct FinishRow {
  const float* row;  // [pixel][lane]
  int64_t pixels;
  int64_t channels;  // of the block
  float* out;
  int64_t pixel_stride;  // of out
  bool stream;           // store past the caches: `out`, stride and channels are whole cache lines
  double* sums;          // of the values [lane], and sums_stride further of their squares: added to
  int64_t sums_stride;
};

}  // namespace dwsep
