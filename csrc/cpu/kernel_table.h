// What one instruction set's compilation offers.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"
#include "cpu/plane_jobs.h"
#include "cpu/product_jobs.h"
#include "cpu/stage_jobs.h"

namespace dwsep {

// Kernels of floats in vectors. Where more instructions bring no other way to do these, a path has them from the one
// that it goes beyond, and its own are null (DWSEP_SHARES_VECTORS, with_vectors in isa.cpp): they are a third of a
// compilation.
struct VectorKernels {
  void (*correlate_row)(const CorrelateRow&);
  void (*correlate_line_back)(const CorrelateLineBack&);
  void (*weight_gradient_rows)(const WeightGradientRows&);
  void (*direct_back_row)(const DirectBackRow&);  // of up to 5, or 7 taps; null where registers are too few
  void (*plane_conv)(const PlaneConv&);           // of planes without pairs
  void (*sum_row)(const float* row, int64_t pixels, float* sums);
  void (*activate_row)(Activation, float* values, int64_t pixels);
  void (*activation_gradient_row)(Activation, const float* raw, float* gradient, int64_t pixels);
  void (*stage_row)(const StageRow&);
  void (*corrected_row)(const StageRow&);
  void (*stage_gradient_row)(const StageGradientRow&);
  void (*stage_output)(const StageOutput&);
  void (*stage_product_sums)(const StageProductSums&);
  void (*gate_gradient_row)(const GateGradientRow&);
  // Consecutive pixels of channels-last float tensors; sums [2][channels, padded to whole vectors].
  void (*moments)(const float* x, int64_t pixels, int64_t channels, double* sums, int64_t sums_stride);
  void (*corrected)(const float* gradient, const float* y, const float* correction, int64_t pixels, int64_t channels,
                    float* out);
  void (*finish_row)(const FinishRow&);
  void (*patch_row)(const PatchRow&);
  bool (*dense_row)(const DenseRow&);
  void (*weighted_rows)(const WeightedRows&);
  void (*layer_norm)(const LayerNormRows&);
  // One K block of a pointwise weight (rows, inner) as [inner, padded to whole vectors][column].
  void (*pack_columns)(const float* source, int64_t rows, int64_t inner, float* target);
  // Rows of the weight, blocks of the channels, rows again.
  void (*few_pixels_forward)(const FewPixels&, int64_t begin, int64_t end);
  void (*few_pixels_backward)(const FewPixels&, int64_t begin, int64_t end);
  void (*few_pixels_weights)(const FewPixels&, int64_t begin, int64_t end);
  int64_t (*fma_loop)(int64_t iterations, float* sink);  // returns the floating-point operations done
};

// One instruction set's kernels.
struct KernelTable : VectorKernels {
  const char* isa;
  int64_t lanes;         // floats of a vector
  int64_t tile_columns;  // output channels of a pointwise micro-kernel: one K block
  int64_t tile_pixels;   // output pixels of a pointwise micro-kernel at most
  void (*depthwise_tile)(const ConvProblem&, const PackedWeights&, Activation, const void* x, void* out, const Tile&);
  void (*separable_tile)(const ConvProblem&, const PackedWeights&, const SeparableOptions&, const void* x, void* out,
                         const Tile&, float* panel, const Prefetch& ahead);
  // Floats of memory that separable_tile needs for a tile of so many pixels.
  int64_t (*separable_floats)(const ConvProblem&, int64_t pixels);
  void (*depthwise_panel)(const ConvProblem&, const PackedWeights&, Activation, const void* x, const Tile&,
                          float* panel, int64_t block_stride);
  void (*correlate_line)(const CorrelateLine&);
  void (*gather_row)(const RowCopy&, const void* source, float* plane);
  void (*scatter_row)(const RowCopy&, const float* plane, void* target);
  void (*transposed_copy)(const TransposedCopy&);
  void (*multiply_panel)(const PanelProduct&, int64_t block);
  void (*outer_product)(const PanelOuterProduct&);
  void (*pointwise_stage_tile)(const PointwiseStageTile&);
  void (*pointwise_tile)(const PointwiseTile&);
  void (*expand_planes)(const PlaneExpansion&);
  void (*finish_streams)();  // behind stores past the caches, before another thread reads
  OperandKernels operands;
  PairKernels pairs;
};

}  // namespace dwsep
