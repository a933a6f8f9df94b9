// Strides of dense channels-last tensors.
#pragma once

#include "cpu/plane_jobs.h"

namespace dwsep {

inline Strides channels_last_strides(const int64_t size[3], int64_t channels) {
  Strides strides = {};
  strides.channel = 1;
  strides.axis[2] = channels;
  strides.axis[1] = size[2] * channels;
  strides.axis[0] = size[1] * strides.axis[1];
  strides.image = size[0] * strides.axis[0];
  return strides;
}

}  // namespace dwsep
