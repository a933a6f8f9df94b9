// What the kernels on planes take. A plane holds one block of channels of a region of an image as [pixel][lane] floats,
// whatever the tensor's layout and element type, with zeros where the region goes beyond the image's columns. Plain
// data, as conv_problem.h.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

// A tensor's elements, as strides in elements: any dense layout of (N, C, D, H, W).
struct Strides {
  int64_t image;
  int64_t channel;
  int64_t axis[3];
};

// A row of pixels between a tensor and planes, one plane a block of channels.
struct RowCopy {
  ElementType element_type;
  int64_t pixel_stride;    // elements of the tensor
  int64_t channel_stride;  // elements of the tensor
  int64_t pixels;
  int64_t channels;      // in all blocks; lanes beyond are zeros in a plane, and left alone in a tensor
  int64_t block_stride;  // floats from a block's row to the next block's
  bool stream = false;   // store whole cache lines of a tensor's floats past the caches
};

// One product of a correlation, relative to the operand of the output pixel and to the channel block's weights.
struct Tap {
  int64_t source;
  int64_t weight;
};

// A row of output pixels: out[p] = activation(bias + sum over taps of weights[tap] * source[p * step + tap]).
struct CorrelateRow {
  const Tap* taps;
  int64_t tap_count;
  int64_t run;       // the taps come in runs of so many, each one pixel behind the last; 0 where they do not
  int64_t run_step;  // floats from a tap's weight to that of the next of its run
  const float* source;
  const float* weights;
  const float* bias;  // null for zeros
  int64_t step;       // floats from a pixel's operands to the next pixel's
  float* out;
  int64_t out_stride;  // floats from a pixel to the next
  int64_t pixels;
  Activation activation;
  bool stream;  // store past the caches: `out` and out_stride are whole cache lines
};

// Taps of a line at most: more of them are faster on planes, where what is loaded serves several taps.
constexpr int64_t kMostLineTaps = 16;

// One channel of a contiguous tensor with one axis: out[i] = activation(bias + sum over taps of weights[tap] *
// source[i - pad_low + tap * dilation]), where what is outside the input is zero.
struct CorrelateLine {
  ElementType element_type;
  const void* source;
  int64_t input;  // elements
  void* out;
  int64_t output;
  const void* weights;
  int64_t taps;
  int64_t dilation;
  int64_t pad_low;
  float bias;
  Activation activation;
  bool stream;  // store past the caches: outputs begin with a cache line
};

// The way back through such a line of floats: the gradient of its input, and the sums for its weights'.
struct CorrelateLineBack {
  const float* source;
  int64_t input;  // elements
  const float* gradient;
  int64_t output;
  const float* weights;
  int64_t taps;
  int64_t dilation;
  int64_t pad_low;
  float bias;
  Activation activation;
  float* before;      // where there is an activation, memory for the gradient before it: whole vectors of outputs
  float* x_gradient;  // or null
  bool stream;        // the gradient of the input
  double* sums;       // [taps, then bias][lane], added to; or null
};

struct MemoryRange {
  const void* first;
  int64_t bytes;
};

// What is asked for from memory while something else is computed.
struct Prefetch {
  MemoryRange ranges[3];
};

// target[column * target_stride + row] = source[row * source_stride + column], element by element.
struct TransposedCopy {
  ElementType element_type;
  const void* source;
  int64_t source_stride;
  int64_t rows;
  int64_t columns;
  void* target;
  int64_t target_stride;
};

// sums[r][t] += sum over rows and pixels of gradient[pixel] * input[r][pixel * pixel_step + t * tap_step].
struct WeightGradientRows {
  const float* const* rows;  // [row_count][1 + kernel_rows]: the gradient's row, then the inputs' rows
  int64_t row_count;
  int64_t pixels;
  int64_t pixel_step;
  int64_t tap_step;
  int64_t kernel_rows;
  int64_t taps;
  float* sums;
  int64_t sums_stride;  // floats from a kernel row's sums to the next's
  Prefetch prefetch = {};
};

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
};

// A row of pixels of a channels-last float tensor on its way into planes: through its norm and activation, or, a
// gradient, with scale * y + shift added to it.
struct StageRow {
  const float* x;
  const float* y;      // a gradient's alone
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixel_stride;
  int64_t pixels;
  int64_t channels;
  float* plane;                 // [block][pixel][lane]
  int64_t block_stride;         // floats from a block's row to the next block's
  const float* gate = nullptr;  // per channel, times the activation; or null; none of a gradient
};

// The way back: from the gradient of activation(scale * x + shift) to that of x, which lies as x does.
struct StageGradientRow {
  const float* gradient;    // in planes [block][pixel][lane], or a tensor
  int64_t gradient_stride;  // floats from a pixel to the next
  int64_t block_stride;     // and from a block to the next
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixel_stride;
  int64_t pixels;
  int64_t channels;
  float* out;
  bool stream;   // store past the caches: `out`, stride and channels are whole cache lines
  double* sums;  // of the gradient before the activation times x, then of that gradient; per channel, padded
  int64_t sums_stride;
  // With `addend` the gradient is gate * gradient + addend_factor * addend, per channel; zeros for a null gradient.
  const float* gate = nullptr;
  const float* addend = nullptr;
  float addend_factor = 1.0f;
  int64_t ahead = 0;       // pixels behind the one being read, to be asked for
  int64_t out_stride = 0;  // floats from a pixel of `out` to the next; 0: as x
};

// The way back through a product with a gate, of a row of an image's pixels in planes [block][pixel][lane]: the
// product's gradient goes to a tensor as it is, sums[channel] += gradient * values, and the values become the product.
struct GateGradientRow {
  const float* gradient;
  float* values;
  int64_t block_stride;  // floats from a block to the next, of both
  const float* gate;     // per channel
  int64_t pixels;
  int64_t channels;
  float* out;
  int64_t out_stride;  // floats from a pixel to the next
  bool stream;         // store past the caches: `out`, its stride and the channels are whole cache lines
  double* sums;        // padded
};

// out = activation(scale * x + shift) + residual, consecutive pixels of channels-last float tensors.
struct StageOutput {
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  const float* residual;  // or null
  int64_t pixels;
  int64_t channels;
  float* out;
  const float* gate = nullptr;  // per channel, times the activation; or null
};

// sums[channel] += gradient * activation(scale * x + shift), over consecutive pixels of channels-last float tensors.
struct StageProductSums {
  const float* gradient;  // null for ones
  const float* x;
  const float* scale;  // per channel; null for none
  const float* shift;
  Activation activation;
  int64_t pixels;
  int64_t channels;
  double* sums;   // padded
  int64_t ahead;  // pixels behind the one being read, to be asked for
};

// A row of pixels of one block of channels, computed, on its way to a channels-last tensor; its sums are wanted.
struct FinishRow {
  const float* row;  // [pixel][lane]
  int64_t pixels;
  int64_t channels;  // of the block
  float* out;
  int64_t pixel_stride;  // of out
  bool stream;           // store past the caches: `out`, stride and channels are whole cache lines
  double* sums;          // of the values [lane], and sums_stride further of their squares: added to
  int64_t sums_stride;
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

// A slice of a kernel with three axes: floats from the plane to what it reads, and from the weights to its own.
struct PlaneSlice {
  int64_t source;
  int64_t weight;
};

// Rows of the depthwise convolution of channel blocks whose inputs lie in planes: out = activation(bias + ...).
struct PlaneConv {
  const float* plane;  // what output column 0 reads of input row 0 with its first tap; beyond the image lie zeros
  int64_t row_stride;  // floats
  int64_t rows;        // of the input; rows beyond are left out
  int64_t first_row;   // of the input, under the first tap of the first output row; may lie outside
  int64_t out_rows;
  int64_t columns;  // of the output
  int64_t kernel[2], stride[2], dilation[2];
  const float* weights;  // [tap][lane]
  const float* bias;     // [lane], or null
  Activation activation;
  void* out;  // elements of `out_type`, as are its strides
  int64_t out_row_stride;
  int64_t out_pixel_stride;
  int64_t channels;  // lanes that are stored, of the last block
  float* sums;       // [lane], of each row's outputs; null for none, as where there are several blocks
  int64_t sums_stride;
  // Where input rows do not follow one another: floats from `plane` to each.
  const int64_t* row_offsets = nullptr;
  double* moments = nullptr;  // of the outputs [lane], and moments_stride further of their squares: added to
  int64_t moments_stride = 0;
  bool stream = false;                 // store past the caches: `out` and its strides are whole cache lines
  const PlaneSlice* slices = nullptr;  // null for one, the plane itself
  int64_t slice_count = 1;
  Prefetch prefetch = {};
  ElementType out_type = ElementType::kFloat32;
  // The plane is of pairs, a pixel and the one under the kernel row's next tap, and so are the weights, two taps each,
  // an odd row's last with a zero: a row then has ceil(kernel[1] / 2) of them.
  bool pairs = false;
  int64_t blocks = 1;                           // each one's bias and moments follow those of the one before
  int64_t plane_stride = 0, weight_stride = 0;  // floats from a block to the next
  int64_t out_block_stride = 0;                 // and elements of `out`
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
