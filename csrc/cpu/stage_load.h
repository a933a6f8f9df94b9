// What a stage of training does to a tensor while loading it.
#pragma once

#include "cpu/kernel_table.h"

namespace dwsep {

// Activations whose derivatives take as long as their values: who needs both has them computed at once, and kept.
inline bool keeps_slopes(Activation activation) {
  return activation == Activation::kSilu || activation == Activation::kGelu;
}

// What a stage does to a channels-last float tensor on its way into planes; channels from the first.
struct StageLoad {
  const float* y;  // of a gradient, whose correction scale and shift then are; else null
  const float* scale;
  const float* shift;
  Activation activation;
};

// Does it to a row. Of `row`, x is the tensor's beginning, from which the row is `at` floats away and its first channel
// is `channel`; y, scale, shift and activation are filled in here.
inline void load_stage_row(const KernelTable& table, const StageLoad& load, int64_t at, int64_t channel, StageRow row) {
  row.x += at;
  row.y = load.y != nullptr ? load.y + at : nullptr;
  row.scale = load.scale != nullptr ? load.scale + channel : nullptr;
  row.shift = load.scale != nullptr ? load.shift + channel : nullptr;
  row.activation = load.activation;
  (load.y != nullptr ? table.corrected_row : table.stage_row)(row);
}

}  // namespace dwsep
