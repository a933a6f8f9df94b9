// Weights in the order of the micro-kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"

namespace dwsep {

struct WeightSources {
  const void* depthwise;       // (C * M, taps)
  const void* depthwise_bias;  // (C * M) or null
  const void* pointwise;       // (K, C * M) or null
  const void* pointwise_bias;  // (K) or null
};

// Whether a separable convolution of a depth multiplier above 1 computes the first output of every channel, then every
// second one, and so on, from its input as it is: where the channels fill their blocks nearly as well so. Otherwise it
// takes its channels repeated, and its weights are packed for those.
bool separates_ranks(const ConvProblem& problem, const KernelTable& kernels);

// The channels of a panel of depthwise outputs, with those that fill every rank's last block.
int64_t panel_channels(const ConvProblem& problem, const KernelTable& kernels);

// Floats of one block of a pointwise weight's columns, for so many inner channels, a multiple of the lanes.
int64_t weight_block_floats(const KernelTable& kernels, ElementType type, int64_t inner);

// Floats that the packed weights of a problem take.
int64_t packed_size(const ConvProblem& problem, const KernelTable& kernels);

// Where each part is in `memory`, which holds packed_size floats and is aligned to a cache line.
PackedWeights packed_parts(const ConvProblem& problem, const KernelTable& kernels, const float* memory);

// Whether weights that may be rounded to bfloat16 are packed as pairs.
inline bool takes_pairs(const KernelTable& kernels, bool bfloat16) {
  return bfloat16 && kernels.pairs.panel != nullptr;
}

// With `pairs`, which the kernels must have, the pointwise weights, floats, are their pairs.
void pack_weights(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources, float* memory,
                  bool pairs = false);

// What floats of so many inner channels are multiplied as with so many outputs. With `rounds` they may be rounded to
// bfloat16, and are where that is the faster.
Operands float_operands(const KernelTable& kernels, int64_t inner, int64_t outputs, bool rounds = false);

// Whether products of such operands take their pixels in tiles, a whole number of which a panel should have.
inline bool multiplies_tiles(const KernelTable& kernels, Operands operands) {
  const bool halves = operands == Operands::kPairs && kernels.operands.prepared(ElementType::kBFloat16);
  return halves || operands == Operands::kPieces;
}

// Floats of one block of such a weight's columns.
int64_t weight_block_floats(const KernelTable& kernels, Operands operands, int64_t inner);

// And of an operand made of a panel of so many pixels; 0 where there is none, the panel being one itself.
int64_t panel_operand_floats(const KernelTable& kernels, Operands operands, int64_t inner, int64_t pixels);

// Such a block's operand, pieces or pairs, of the plain weights [inner, whole vectors][column].
void pack_block_operand(const KernelTable& kernels, Operands operands, const float* plain, int64_t inner,
                        float* target);

// A pointwise weight (out_channels, inner) alone, float32: [K block][inner, padded to whole vectors][column], or its
// pieces or pairs.
void pack_pointwise_blocks(const KernelTable& kernels, const float* weight, int64_t inner, int64_t out_channels,
                           float* packed, Operands operands = Operands::kFloats);

// Makes pairs of such packed weights where they are, one block behind the other from the beginning.
void pair_pointwise_blocks(const KernelTable& kernels, int64_t inner, int64_t out_channels, float* packed);

// The same of a panel [block][pixel][lane] of `inner` channels, whole vectors.
inline void pair_panel_in_place(const KernelTable& kernels, int64_t inner, int64_t pixels, float* panel) {
  kernels.pairs.panel(panel, pixels * kernels.lanes, inner / kernels.lanes, pixels, panel);
}

// A pointwise weight the other way round, from outputs to inputs: [column block of inputs][output, padded to whole
// vectors][column], or the pieces or pairs of that.
void pack_pointwise_transposed(const KernelTable& kernels, const float* weight, int64_t inner, int64_t out_channels,
                               float* packed, Operands operands = Operands::kFloats);

// Packs into this thread's scratch memory: valid until its next packing.
PackedWeights pack_weights(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources);

std::vector<ColumnSegment> column_segments(const ConvProblem& problem);

}  // namespace dwsep
