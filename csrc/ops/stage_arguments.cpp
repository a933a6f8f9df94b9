#include "ops/stage_arguments.h"

#include <torch/csrc/stable/ops.h>

#include "ops/output_memory.h"

namespace dwsep {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

thread_local bool rounded_products = false;

}  // namespace

RoundedProducts::RoundedProducts(bool allowed) : before_(rounded_products) { rounded_products = allowed; }
RoundedProducts::~RoundedProducts() { rounded_products = before_; }
bool RoundedProducts::are_allowed() { return rounded_products; }

StageInput::StageInput(const Tensor& input, const std::optional<Tensor>& input_scale,
                       const std::optional<Tensor>& input_shift, const std::string& name)
    : x(input), scale(input_scale), shift(input_shift), activation(parse_activation(name)) {
  STD_TORCH_CHECK(input.is_cpu() && input.scalar_type() == ScalarType::Float, "x must be float32 on the CPU");
  STD_TORCH_CHECK(input.dim() >= 3 && input.dim() <= 5, "x must have 3 to 5 dimensions, got ", input.dim());
  STD_TORCH_CHECK(input.size(1) >= 1, "x must have at least 1 channel");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift must be given together");
  scale = check_vector("scale", scale, input, input.size(1));
  shift = check_vector("shift", shift, input, input.size(1));
  x = to_channels_last(input);
}

int64_t StageInput::pixels() const { return x.numel() / x.size(1); }

std::vector<int64_t> spatial_of(const Tensor& x) { return {x.sizes().begin() + 2, x.sizes().end()}; }

std::vector<int64_t> sizes_of(int64_t batch, int64_t channels, const std::vector<int64_t>& spatial) {
  std::vector<int64_t> sizes = {batch, channels};
  sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  return sizes;
}

Tensor check_output_like(const char* name, const Tensor& value, const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(value.is_cpu() && value.scalar_type() == ScalarType::Float, name, " must be float32 on the CPU");
  bool fits = value.dim() == static_cast<int64_t>(sizes.size());
  for (std::size_t axis = 0; fits && axis < sizes.size(); ++axis) {
    fits = value.size(static_cast<int64_t>(axis)) == sizes[axis];
  }
  STD_TORCH_CHECK(fits, name, " must have the shape of the tensor it belongs to");
  return to_channels_last(value);
}

void check_channels(const char* name, const std::optional<Tensor>& value, int64_t channels) {
  if (!value.has_value()) return;
  STD_TORCH_CHECK(value->is_cpu() && value->scalar_type() == ScalarType::Float && value->is_contiguous() &&
                      value->dim() == 1 && value->size(0) == channels,
                  name, " must be float32 with shape (", channels, ")");
}

void check_correction(const std::optional<Tensor>& correction, const Tensor& x, int64_t channels) {
  if (!correction.has_value()) return;
  check_like("correction", *correction, x);
  STD_TORCH_CHECK(correction->dim() == 2 && correction->size(0) == 2 && correction->size(1) == channels,
                  "correction must have shape (2, ", channels, ")");
}

Tensor check_per_image(const char* name, const Tensor& value, const Tensor& x) {
  STD_TORCH_CHECK(value.dim() == 2 && value.size(0) == x.size(0) && value.size(1) == x.size(1), name,
                  " must have shape (", x.size(0), ", ", x.size(1), ")");
  const Tensor dense = to_contiguous(value);
  check_like(name, dense, x);
  return dense;
}

OutputGradient::OutputGradient(const Tensor& grad, const Tensor& y, const std::optional<Tensor>& given, const Tensor& x,
                               const std::vector<int64_t>& sizes)
    : gradient(check_output_like("grad", grad, sizes)),
      raw(given.has_value() ? check_output_like("y", y, sizes) : gradient),
      correction(given) {
  check_correction(correction, x, sizes[1]);
}

StageGradientTensors::StageGradientTensors(const Tensor& of_x, bool has_affine, const Tensor& of_weight, bool has_bias,
                                           const std::vector<bool>& output_mask) {
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask must have 2 entries, got ", output_mask.size());
  wants_x = output_mask[0];
  wants_affine = wants_x && has_affine;
  wants_weight = output_mask[1];
  wants_bias = wants_weight && has_bias;
  const auto none = [] { return empty_float({0}); };
  x = wants_x ? empty_stage_output(of_x.size(0), of_x.size(1), spatial_of(of_x)) : none();
  affine = wants_affine ? empty_sums(of_x.size(1)) : none();
  weight = wants_weight ? empty_contiguous(of_weight) : none();
  bias = wants_bias ? empty_float({of_weight.size(0)}) : none();
}

Tensor empty_stage_output(int64_t batch, int64_t channels, const std::vector<int64_t>& spatial) {
  std::vector<int64_t> sizes = {batch, channels};
  if (spatial.size() == 1) sizes.push_back(1);  // no memory format has three axes
  sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  const MemoryFormat format = sizes.size() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
  const Tensor out = empty_output(sizes, ScalarType::Float, format);
  return spatial.size() == 1 ? torch::stable::squeeze(out, 2) : out;
}

Tensor empty_sums(int64_t channels) { return empty_tensor({2, channels}, ScalarType::Double); }

Tensor empty_float(const std::vector<int64_t>& sizes) { return empty_tensor(sizes, ScalarType::Float); }

}  // namespace dwsep
