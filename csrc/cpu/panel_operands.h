// How panels become operands of pieces or pairs, where those are multiplied instead of floats.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/packing.h"
#include "cpu/scratch.h"

namespace dwsep {

// Pixels of a panel, given how many would fit where it should be: a few micro-kernels' at least and at most.
inline int64_t panel_pixels(const KernelTable& table, Operands operands, int64_t fit) {
  if (!multiplies_tiles(table, operands)) return std::clamp(fit, 2 * table.tile_pixels, 14 * table.tile_pixels);
  constexpr int64_t kGroup = 32, kGroups = 8;
  return std::clamp<int64_t>(fit / kGroup, 1, kGroups) * kGroup;
}

// A panel [block][pixel][lane] of `inner` channels as pieces or pairs.
inline void pack_panel_operand(const KernelTable& table, Operands operands, const float* panel, int64_t block_stride,
                               int64_t inner, int64_t pixels, float* operand) {
  const int64_t blocks = (inner + table.lanes - 1) / table.lanes;
  if (operands == Operands::kPairs) {
    table.pairs.panel(panel, block_stride, blocks, pixels, operand);
  } else {
    table.operands.pack_panel(panel, block_stride, blocks, pixels, operand);
  }
}

// What a product takes of a panel [block][pixel][lane] of `inner` channels: the panel, or its pieces or pairs in this
// thread's memory, valid until its next. `block_stride` is 0 where blocks of `pixels` follow one another.
inline const float* panel_operand(const KernelTable& table, Operands operands, const float* panel, int64_t inner,
                                  int64_t pixels, int64_t block_stride = 0) {
  if (operands == Operands::kFloats) return panel;
  const int64_t floats = panel_operand_floats(table, operands, inner, pixels);
  float* operand = scratch(Scratch::kOperands, static_cast<std::size_t>(floats));
  if (block_stride == 0) block_stride = pixels * table.lanes;
  pack_panel_operand(table, operands, panel, block_stride, inner, pixels, operand);
  return operand;
}

// The same of a panel whose blocks follow one another and which nobody needs any more: pairs take its place.
inline const float* last_panel_operand(const KernelTable& table, Operands operands, float* panel, int64_t inner,
                                       int64_t pixels) {
  if (operands != Operands::kPairs) return panel_operand(table, operands, panel, inner, pixels);
  pair_panel_in_place(table, (inner + table.lanes - 1) / table.lanes * table.lanes, pixels, panel);
  return panel;
}

// Whether of so many channels the last vector has none in its upper lanes.
inline bool ends_in_half_a_vector(const KernelTable& table, int64_t channels) {
  return channels % table.lanes > 0 && channels % table.lanes <= table.lanes / 2;
}

// Memory for the operands of an outer product, the same; null where it needs none.
inline float* outer_product_memory(const KernelTable& table, int64_t rows, int64_t vectors, int64_t pixels,
                                   bool rounds = false) {
  const int64_t floats = table.operands.outer_floats(rows, vectors, pixels, rounds);
  return floats == 0 ? nullptr : scratch(Scratch::kOperands, static_cast<std::size_t>(floats));
}

}  // namespace dwsep
