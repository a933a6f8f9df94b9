// Registration, nothing else: the operators' schemas, fake kernels and derivatives are defined in Python, so that they
// exist without this library too.

#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"
#include "cpu/kept_memory.h"
#include "cpu/peak.h"
#include "ops/depthwise_conv.h"
#include "ops/inference_program.h"
#include "ops/pointwise_conv.h"
#include "ops/resize.h"
#include "ops/separable_conv.h"
#include "ops/stages.h"
#include "ops/training_program.h"

STABLE_TORCH_LIBRARY_IMPL(dwsep, CPU, library) {
  library.impl("dense_stage", TORCH_BOX(&dwsep::dense_stage));
  library.impl("dense_stage_backward", TORCH_BOX(&dwsep::dense_stage_backward));
  library.impl("depthwise_conv", TORCH_BOX(&dwsep::depthwise_conv));
  library.impl("depthwise_conv_backward", TORCH_BOX(&dwsep::depthwise_conv_backward));
  library.impl("depthwise_stage", TORCH_BOX(&dwsep::depthwise_stage));
  library.impl("depthwise_stage_backward", TORCH_BOX(&dwsep::depthwise_stage_backward));
  library.impl("expanded_stage_backward", TORCH_BOX(&dwsep::expanded_stage_backward));
  library.impl("inference_program", TORCH_BOX(&dwsep::inference_program));
  library.impl("mixed_stage", TORCH_BOX(&dwsep::mixed_stage));
  library.impl("mixed_stage_backward", TORCH_BOX(&dwsep::mixed_stage_backward));
  library.impl("pack_depthwise_weights", TORCH_BOX(&dwsep::pack_depthwise_weights));
  library.impl("pack_pointwise_weights", TORCH_BOX(&dwsep::pack_pointwise_weights));
  library.impl("pack_separable_weights", TORCH_BOX(&dwsep::pack_separable_weights));
  library.impl("pointwise_conv_packed", TORCH_BOX(&dwsep::pointwise_conv_packed));
  library.impl("pointwise_stage", TORCH_BOX(&dwsep::pointwise_stage));
  library.impl("pointwise_stage_backward", TORCH_BOX(&dwsep::pointwise_stage_backward));
  library.impl("resize_bilinear", TORCH_BOX(&dwsep::resize_bilinear));
  library.impl("resize_bilinear_backward", TORCH_BOX(&dwsep::resize_bilinear_backward));
  library.impl("separable_conv", TORCH_BOX(&dwsep::separable_conv));
  library.impl("separable_conv_backward", TORCH_BOX(&dwsep::separable_conv_backward));
  library.impl("separable_conv_packed", TORCH_BOX(&dwsep::separable_conv_packed));
  library.impl("stage_correction", TORCH_BOX(&dwsep::stage_correction));
  library.impl("stage_statistics", TORCH_BOX(&dwsep::stage_statistics));
  library.impl("stage_sums",
               TORCH_BOX(static_cast<torch::stable::Tensor (*)(const torch::stable::Tensor&)>(&dwsep::stage_sums)));
  library.impl(
      "stage_corrected",
      TORCH_BOX(static_cast<torch::stable::Tensor (*)(const torch::stable::Tensor&, const torch::stable::Tensor&,
                                                      const torch::stable::Tensor&)>(&dwsep::stage_corrected)));
  library.impl("stage_gate", TORCH_BOX(&dwsep::stage_gate));
  library.impl("stage_gate_gradient", TORCH_BOX(&dwsep::stage_gate_gradient));
  library.impl("stage_output", TORCH_BOX(&dwsep::stage_output));
  library.impl("stage_output_backward", TORCH_BOX(&dwsep::stage_output_backward));
  library.impl("stage_pool", TORCH_BOX(&dwsep::stage_pool));
  library.impl("stage_squeeze_backward", TORCH_BOX(&dwsep::stage_squeeze_backward));
  library.impl("training_program", TORCH_BOX(&dwsep::training_program));
  library.impl("training_program_backward", TORCH_BOX(&dwsep::training_program_backward));
}

#define DWSEP_EXPORT extern "C" __attribute__((visibility("default")))

DWSEP_EXPORT const char* dwsep_compiled_isas() {
  static const std::string names = dwsep::compiled_isas();
  return names.c_str();
}

DWSEP_EXPORT const char* dwsep_supported_isas() {
  static const std::string names = dwsep::supported_isas();
  return names.c_str();
}

DWSEP_EXPORT const char* dwsep_current_isa() { return dwsep::kernels().isa; }

// 0 where the library was built with that instruction set and the CPU has it.
DWSEP_EXPORT int dwsep_set_isa(const char* name) { return dwsep::set_isa(name) ? 0 : 1; }

DWSEP_EXPORT int64_t dwsep_packed_separable_size(int64_t inner_channels, int64_t multiplier, int64_t taps,
                                                 int64_t out_channels, int bfloat16) {
  return dwsep::packed_separable_size(inner_channels, multiplier, taps, out_channels, bfloat16 != 0);
}

DWSEP_EXPORT int64_t dwsep_packed_pointwise_size(int64_t channels, int64_t out_channels) {
  return dwsep::packed_pointwise_size(channels, out_channels);
}

DWSEP_EXPORT int64_t dwsep_release_memory() { return static_cast<int64_t>(dwsep::release_kept_memory()); }

DWSEP_EXPORT double dwsep_fma_peak(double seconds) { return dwsep::fma_peak(seconds); }
