// What a stage of training does to a tensor while loading it.
#pragma once

#include "cpu/conv_problem.h"

namespace dwsep {

// What a stage does to a channels-last float tensor on its way into planes; channels from the first.
struct StageLoad {
  const float* y;  // of a gradient, whose correction scale and shift then are; else null
  const float* scale;
  const float* shift;
  Activation activation;
};

}  // namespace dwsep
