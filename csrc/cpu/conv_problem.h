// What a kernel needs to know of a convolution. Plain data: it crosses from code compiled for the baseline into code
// compiled for one instruction set, so nothing here may have an inline function that both would emit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dwsep {

// The last two are gates, of squeeze and excite: a pointwise convolution of inference alone ends in them.
enum class Activation : int32_t { kNone, kRelu, kRelu6, kSilu, kHardswish, kGelu, kSigmoid, kHardsigmoid };
enum class Residual : int32_t { kNone, kInput, kDepthwise };
enum class ElementType : int32_t { kFloat32, kBFloat16 };
// What a pointwise product multiplies: floats; pairs of inner channels rounded to bfloat16, two blocks' in the place of
// one's; or floats in pieces, as an instruction set wants them (OperandKernels).
enum class Operands : int32_t { kFloats, kPairs, kPieces };

// A run of output columns for which the same taps along W fall inside the input: [tap_begin, tap_end).
struct ColumnSegment {
  int64_t begin;
  int64_t end;
  int64_t tap_begin;
  int64_t tap_end;
};

// Axes are (D, H, W), the leading ones of size 1 where the convolution has fewer. Activations are channels last.
struct ConvProblem {
  int64_t batch;
  int64_t channels;        // C
  int64_t multiplier;      // M
  int64_t inner_channels;  // C * M
  int64_t out_channels;    // K; unused by depthwise alone
  int64_t input[3];
  int64_t output[3];
  int64_t kernel[3];
  int64_t stride[3];
  int64_t dilation[3];
  int64_t pad_low[3];
  const ColumnSegment* segments;
  int64_t segment_count;
  ElementType element_type;
  bool reads_ahead = false;  // of depthwise alone: the input is to be asked for before it is read
  bool stream = false;       // alike: store past the caches, float channels of the output are whole cache lines
};

// Weights in the order in which micro-kernels read them, channels padded with zeros to whole blocks. The inner blocks
// are those of the channels, M times: the first output of every channel, the second, and so on.
struct PackedWeights {
  const float* depthwise;       // [inner block][tap][lane]
  const float* depthwise_bias;  // [inner block][lane]
  const float* pointwise;       // [K block][inner channel, padded][column]
  const float* pointwise_bias;  // [K block][column]
};

struct SeparableOptions {
  Activation inner_activation;
  Activation activation;
  Residual residual;
  const void* addend = nullptr;  // what Residual::kInput adds, a tensor that lies as the output does; x where null
  bool stream = false;           // store past the caches: float channels of the output are whole cache lines
  bool pairs = false;            // of floats: the pointwise weights are pairs, and what meets them becomes pairs
  bool fresh = false;            // the output's memory has left the caches, as a training step's has
};

// A rectangle of the output: rows [row_begin, row_end) of the batch * D * H rows, columns [column_begin, column_end),
// and for the separable kernel the K blocks [block_begin, block_end).
struct Tile {
  int64_t row_begin;
  int64_t row_end;
  int64_t column_begin;
  int64_t column_end;
  int64_t block_begin;
  int64_t block_end;
};

}  // namespace dwsep
