// Elements of tensors as floats and back, outside of the vector kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/conv_problem.h"

namespace dwsep {

inline int64_t element_bytes(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

inline const void* advanced(const void* pointer, int64_t bytes) { return static_cast<const char*>(pointer) + bytes; }
inline void* advanced(void* pointer, int64_t bytes) { return static_cast<char*>(pointer) + bytes; }

inline float as_float(float value) { return value; }
inline float as_float(uint16_t bfloat16_bits) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16_bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest even where the element is a bfloat16.
inline void store_element(void* target, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat32) {
    static_cast<float*>(target)[index] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  bits = nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  static_cast<uint16_t*>(target)[index] = static_cast<uint16_t>(bits);
}

}  // namespace dwsep
