// Squeeze and excite on what a stage leaves pending: means per image, the product with a gate, and the way back.
#pragma once

#include "cpu/conv_problem.h"

namespace dwsep {

// A pending tensor (images, pixels, channels), all floats.
struct PendingImages {
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t images;
  int64_t pixels;
  int64_t channels;
};

// out (images, channels) = factor * the sum over an image's pixels of gradient * z; of z for a null gradient.
void stage_image_sums(const PendingImages& input, const float* gradient, double factor, float* out);

// out = z * gate (images, channels).
void stage_gated(const PendingImages& input, const float* gate, float* out);

// From the gradients of z * gate, null for none, and of the means (images, channels), to that of x and the affine
// gradient (2, channels), which is null without a scale. With neither gate nor means `gradient` is that of z.
void stage_gated_backward(const PendingImages& input, const float* gradient, const float* gate,
                          const float* mean_gradient, float* x_gradient, double* affine_gradient);

}  // namespace dwsep
