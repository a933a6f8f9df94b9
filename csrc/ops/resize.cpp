#include "ops/resize.h"

#include <torch/csrc/stable/ops.h>

#include <utility>

#include "cpu/resize_kernel.h"
#include "ops/stage_arguments.h"

namespace dwsep {
namespace {

// From `input` to `output`, with the checks of what is given.
Resize make_resize(const char* name, const Tensor& given, const std::vector<int64_t>& size, bool align_corners,
                   const std::vector<double>& scales) {
  STD_TORCH_CHECK(given.is_cpu() && given.scalar_type() == torch::headeronly::ScalarType::Float, name,
                  " must be float32 on the CPU");
  STD_TORCH_CHECK(given.dim() == 4 && given.size(1) >= 1 && given.size(2) >= 1 && given.size(3) >= 1, name,
                  " must have shape (N, C, H, W), none of C, H and W 0");
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1, "size must be two positive integers");
  STD_TORCH_CHECK(scales.empty() || scales.size() == 2, "scales must be none or two, got ", scales.size());
  Resize resize = {given.size(0), given.size(1), {given.size(2), given.size(3)}, {size[0], size[1]}, align_corners, {}};
  for (std::size_t i = 0; i < scales.size(); ++i) resize.scale[i] = scales[i];
  return resize;
}

}  // namespace

Tensor resize_bilinear(const Tensor& x, const std::vector<int64_t>& size, bool align_corners,
                       const std::vector<double>& scales) {
  const Resize resize = make_resize("x", x, size, align_corners, scales);
  const Tensor input = to_channels_last(x), out = empty_stage_output(x.size(0), x.size(1), size);
  resize_forward(resize, floats(input), mutable_floats(out));
  return out;
}

Tensor resize_bilinear_backward(const Tensor& grad, const std::vector<int64_t>& size, bool align_corners,
                                const std::vector<double>& scales) {
  Resize resize = make_resize("grad", grad, size, align_corners, scales);
  std::swap(resize.input, resize.output);
  const Tensor gradient = to_channels_last(grad), out = empty_stage_output(grad.size(0), grad.size(1), size);
  resize_backward(resize, floats(gradient), mutable_floats(out));
  return out;
}

}  // namespace dwsep
