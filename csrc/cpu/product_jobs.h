// What the kernels of matrix products take: panels of pixels [block][pixel][lane] times packed weights. Plain data, as
// conv_problem.h.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// A panel [inner block][pixel][lane] times packed weights [block][inner][column].
struct PanelProduct {
  const float* panel;
  int64_t inner_blocks;
  int64_t pixels;
  const float* weights;
  float* target;
  int64_t inner;    // channels in the inner blocks
  int64_t columns;  // of the target which are wanted, a block's at most
  Prefetch prefetch;
  Operands operands = Operands::kFloats;  // what panel and weights are
  int64_t block_stride = 0;               // floats of the panel from an inner block to the next; 0: those of the pixels
};

// The products of two panels' pixels, summed over the pixels.
struct PanelOuterProduct {
  const float* left;   // [row block][pixel][lane]
  int64_t rows;        // computed a few together: sums has room for whole blocks of them
  const float* right;  // [vector][pixel][lane]
  int64_t vectors;
  int64_t pixels;
  float* sums;          // [vector][row][lane]
  int64_t sums_stride;  // floats from a vector's sums to the next's
  bool first;           // whether there is nothing yet to add to
  Prefetch prefetch;
  float* memory = nullptr;  // for operands of their own, as outer_floats says
  bool rounds = false;      // whether they may be rounded to bfloat16, as outer_floats was told
  bool half = false;        // whether the last vector has nothing in its upper lanes
};

// A panel [inner block][pixel][lane] times packed weights [K block][inner][column], into pixels of a tensor.
struct PointwiseStageTile {
  const float* panel;
  int64_t inner;  // channels in the inner blocks
  int64_t pixels;
  int64_t out_channels;
  const float* weights;
  const float* bias;
  float* out;
  int64_t out_stride;  // floats from a pixel to the next
  double* sums;  // of the outputs per channel in whole K blocks, and sums_stride further of their squares: added to
  int64_t sums_stride;
  bool stream;  // store past the caches: `out` and the channels are whole cache lines
  Prefetch prefetch;
  Operands operands = Operands::kFloats;  // what panel and weights are
};

// One K block of a 1x1 convolution, for rows of pixels, into planes [vector of the block][row][column][lane].
struct PlaneExpansion {
  const float* panel;  // [inner block][row][column][lane]
  int64_t panel_block_stride;
  int64_t inner;  // channels in the inner blocks
  int64_t rows;
  int64_t columns;
  int64_t out_channels;
  const float* weights;
  const float* bias;
  int64_t block;
  Activation activation;
  float* planes;  // the first pixel
  int64_t row_stride;
  int64_t plane_stride;
  Operands operands = Operands::kFloats;  // what panel and weights are
};

// The same for inference, K blocks [block_begin, block_end): activation, then residual.
struct PointwiseTile {
  const float* panel;
  int64_t panel_block_stride;  // floats from an inner block to the next; 0 where blocks of `pixels` follow one another
  int64_t inner;               // channels in the inner blocks
  int64_t pixels;
  int64_t out_channels;
  const float* weights;
  const float* bias;
  Activation activation;
  const float* residual;  // lies as `out` does; or null
  float* out;
  int64_t block_begin;
  int64_t block_end;
  Prefetch prefetch;
  Operands operands = Operands::kFloats;  // what panel and weights are
  int64_t out_stride = 0;                 // floats from a pixel of `out` to the next; 0: its channels
};

// A handful of pixels of a pointwise stage, or of its way back: what each of the kernels reads and writes.
struct FewPixels {
  int64_t pixels;
  int64_t channels;
  int64_t rows;           // output channels
  const float* panel;     // inputs [channel block][pixel][lane]
  const float* gradient;  // of the outputs [row block][pixel][lane]
  const float* weight;    // [row][channel]
  const float* bias;      // or null
  float* out;             // [pixel][row]; back, [channel block][pixel][lane]; of the weight, [row][channel]
  bool stream;            // store past the caches: `out` and the channels are whole cache lines
};

// The operands of consecutive output pixels of a dense convolution, as a panel [inner block][pixel][lane]: per pixel,
// the runs one behind the other. Up to a vector behind the last of a run is read, and must be memory of the same
// buffer.
struct PatchRow {
  const float* source;  // the first pixel's first operand
  const int64_t* runs;  // floats from a pixel's first operand to each run
  int64_t run_count;
  int64_t run_length;
  int64_t step;  // floats from a pixel to the next
  int64_t pixels;
  float* panel;
  int64_t block_stride;  // floats of the panel from an inner block to the next
};

// A row of a dense convolution's outputs, from what a pixel's runs say of its padded input rows.
struct DenseRow {
  const float* source;  // the first pixel's first operand
  const int64_t* runs;  // floats from a pixel's first operand to each run
  int64_t run_count;
  int64_t run_length;
  int64_t step;  // floats from a pixel to the next
  int64_t pixels;
  int64_t out_channels;
  const float* weights;  // [K block][operand, padded][column]
  const float* bias;
  int64_t inner_padded;
  Activation activation;
  const float* residual;  // lies as `out` does; or null
  float* out;
};

// Operands of products whose inner channels are rounded to bfloat16 and taken two at a time, two blocks in the place of
// one: half the floats, at most, of what they are made of, whose memory they may share. Null where there is no such
// instruction.
struct PairKernels {
  // [block of two][pixel][lane] from a panel of `blocks`, block_stride floats apart; in place where that is `pixels`.
  void (*panel)(const float* panel, int64_t block_stride, int64_t blocks, int64_t pixels, float* pairs);
  // One K block of weights [inner, whole vectors][column].
  void (*columns)(const float* plain, int64_t inner, float* pairs);
  // A row of a channels-last tensor of bfloat16, each pixel with the one `distance` behind it, zeros beyond the row;
  // `plane` is the first pixel's place, and `before` places in front of it are written, too.
  void (*row)(const RowCopy&, int64_t distance, int64_t before, const void* source, float* plane);
  // The plane is of such rows, a pixel and the one under the kernel row's next tap, and the weights are of two taps
  // each, an odd row's last with a zero: a row then has ceil(kernel[1] / 2) of them.
  void (*plane_conv)(const PlaneConv&);
};

// Operands of products which an instruction set wants in a form of its own; for what is multiplied as it lies,
// `prepared` and `pays` say false and the others are null.
struct OperandKernels {
  bool (*prepared)(ElementType);
  int64_t (*floats)(ElementType, int64_t rows, int64_t inner);
  // One block of plain weights [inner][column].
  void (*pack_weights)(ElementType, const float* plain, int64_t inner, float* operand);
  // Whether pieces of floats pay where so many inner channels are multiplied with so many columns. It must not depend
  // on the pixels: they may be cut by the number of threads.
  bool (*pays)(int64_t inner, int64_t columns);
  // The rows of a panel [inner block][pixel][lane] of floats.
  void (*pack_panel)(const float* panel, int64_t block_stride, int64_t blocks, int64_t pixels, float* operand);
  // The same two of the products of two panels' pixels: floats of memory, 0 where they are multiplied as they lie.
  int64_t (*outer_floats)(int64_t rows, int64_t vectors, int64_t pixels, bool rounds);
};

}  // namespace dwsep
