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

// A row of gradients of outputs that meets an input row, and the kernel row between them.
struct DirectBackLine {
  const float* gradient;  // column 0, channel 0
  int64_t weights;        // floats from a block's first weight, or its first sum, to the kernel row's
};

// The way back to some columns of a row of an input of floats: x_gradient[column] = the sum over lines and taps of
// weights[tap] * gradient[first + (column + taps - 1 - tap) * gradient_step], and the same products of x and gradient
// are added to the sums. Each of the three is a channels-last tensor, or planes.
struct DirectBackRow {
  const float* x;
  float* x_gradient;
  const DirectBackLine* lines;
  int64_t line_count;
  int64_t columns;
  int64_t column_step;   // floats from one to the next, of x and of its gradient
  int64_t block_stride;  // of x: floats from a channel block to the next
  int64_t out_block_stride;
  int64_t first;  // column of the gradient that the last tap brings to the first column, possibly outside
  int64_t gradient_step;
  int64_t first_output, end_output;  // columns of the gradient that are in memory; others are zeros
  int64_t pixel_stride;              // of the gradient
  int64_t gradient_block_stride;
  int64_t channels;
  int64_t taps;
  int64_t tap_floats;    // from a tap's weight, or sum, to the next one's
  const float* weights;  // of the first tap, [channel block][...][lane]
  int64_t block_floats;  // from a block to the next
  float* sums;           // alike
  int64_t sums_stride;
  bool stream;  // store x_gradient past the caches: its channels are whole cache lines
  // What comes next in channels-last tensors, or null: pixels a step apart, as many as columns.
  const float* next[3];
  int64_t next_steps[3];
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
  int64_t blocks = 1;                           // each one's bias and moments follow those of the one before
  int64_t plane_stride = 0, weight_stride = 0;  // floats from a block to the next
  int64_t out_block_stride = 0;                 // and elements of `out`
};

// Sums of rows: out[i][...] = the sum over k in [begins[i], begins[i + 1]) of weights[k] times the `length` floats at
// places[k] from the source.
struct WeightedRows {
  const float* source;
  const int64_t* begins;  // (outputs + 1)
  const int64_t* places;
  const float* weights;
  int64_t outputs;
  int64_t length;
  float* out;
};

}  // namespace dwsep
