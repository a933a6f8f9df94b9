// Bilinear resizing of images, and its gradient.
#pragma once

#include <cstdint>

namespace dwsep {

struct Resize {
  int64_t batch, channels;
  int64_t input[2], output[2];  // height, width
  // Whether the corners' centres stay where they are; else the images' edges do.
  bool align_corners;
  double scale[2];  // of height and width where they were given, which the sizes may not be exactly; else 0
};

// Channels-last floats: x (N, H, W, C), y (N, H', W', C).
void resize_forward(const Resize& resize, const float* x, float* y);
void resize_backward(const Resize& resize, const float* gradient, float* x_gradient);

}  // namespace dwsep
