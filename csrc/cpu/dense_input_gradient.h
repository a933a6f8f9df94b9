// The gradient of a dense convolution's input. Input pixels a stride apart meet the same taps: their gradients are a
// dense convolution of the outputs' gradients with these taps.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dense_stage_kernel.h"
#include "cpu/depthwise_rows.h"
#include "cpu/patches.h"
#include "cpu/row_units.h"

namespace dwsep {

class DenseInputGradient {
 public:
  DenseInputGradient(const DenseStage& stage, const DenseStageGradients& gradients);
  void run();

 private:
  // The pixels of one residue of each axis.
  struct Class {
    AxisResidue height, width;
    int64_t columns;  // of its pixels in a row
    PatchRuns runs;
    int64_t inner;         // operands: taps * K
    int64_t inner_blocks;  // vectors of operands
    int64_t weights_at;    // of its packed weights
    Operands operands;     // of the products with them
  };

  const KernelTable& table_;
  const DenseStage& stage_;
  const DenseStageGradients& gradients_;
  int64_t lanes_, outputs_, channels_;
  int64_t column_blocks_;  // of the inputs' channels, a micro-kernel's columns each
  std::vector<Class> classes_;
  Range reach_{0, 0};    // output rows that reach a row of a class, from its number on
  Range columns_{0, 0};  // output columns that reach any
  int64_t most_inner_blocks_ = 0;
  int64_t weights_floats_ = 0;  // of all classes
  RowUnits units_;              // of rows of the classes
  const float* weights_ = nullptr;
  bool stream_ = false;

  int64_t row_floats() const { return columns_.size() * outputs_; }
  int64_t rows_floats(int64_t rows) const { return (rows + reach_.size()) * row_floats() + lanes_; }
  int64_t tile() const;
  int64_t find_classes();
  void pack(float* memory) const;
  void fill_rows(int64_t image, Range rows, float* memory) const;
  Prefetch read_by(int64_t unit) const;
  void run_part(int64_t part, float* rows, float* panel, double* affine_sums) const;
  void run_tile(const Class& of, int64_t image, Range rows, int64_t first, int64_t end, const float* source,
                float* memory, double* affine_sums, const Prefetch& next) const;
};

}  // namespace dwsep
