#include "ops/pointwise_conv.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/isa.h"
#include "cpu/packing.h"
#include "cpu/pointwise_conv_kernel.h"
#include "ops/stage_arguments.h"

namespace dwsep {

Tensor pack_pointwise_weights(const Tensor& weight, const std::optional<Tensor>& bias, bool bfloat16) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float, "weight must be float32 on the CPU");
  STD_TORCH_CHECK(weight.dim() >= 2 && weight.size(0) >= 1 && weight.size(1) >= 1 &&
                      weight.numel() == weight.size(0) * weight.size(1),
                  "pointwise weight must have shape (K, C, 1, ...)");
  const Tensor dense = to_contiguous(weight);
  const int64_t outputs = weight.size(0), channels = weight.size(1);
  const std::optional<Tensor> dense_bias = check_vector("pointwise bias", bias, weight, outputs);
  const Tensor packed = empty_float({packed_pointwise_size(channels, outputs)});
  pack_pointwise(kernels(), floats(dense), static_cast<const float*>(data_or_null(dense_bias)), channels, outputs,
                 takes_pairs(kernels(), bfloat16), mutable_floats(packed));
  return packed;
}

Tensor pointwise_conv_packed(const Tensor& x, const Tensor& packed, int64_t out_channels, const std::string& activation,
                             const std::optional<Tensor>& residual, bool bfloat16) {
  const StageInput input(x, std::nullopt, std::nullopt, activation);
  STD_TORCH_CHECK(out_channels >= 1, "out_channels must be at least 1, got ", out_channels);
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == torch::headeronly::ScalarType::Float &&
                      packed.is_contiguous() && packed.numel() == packed_pointwise_size(x.size(1), out_channels),
                  "packed must be what pack_pointwise_weights returned for these sizes");
  const Tensor out = empty_stage_output(x.size(0), out_channels, spatial_of(x));
  std::optional<Tensor> addend;
  if (residual.has_value()) {
    addend = check_output_like("residual", *residual, sizes_of(x.size(0), out_channels, spatial_of(x)));
  }
  pointwise_conv_forward({input.pixels(), input.channels(), out_channels, input.data(), floats(packed),
                          input.activation, addend.has_value() ? floats(*addend) : nullptr, mutable_floats(out),
                          nullptr, 0, takes_pairs(kernels(), bfloat16)});
  return out;
}

int64_t packed_pointwise_size(int64_t channels, int64_t out_channels) {
  return packed_pointwise_size(kernels(), channels, out_channels);
}

}  // namespace dwsep
