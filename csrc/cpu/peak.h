#pragma once

namespace dwsep {

// Float32 operations a second of all threads together, from multiply-adds on registers; the best of several attempts
// which take about `seconds` in all. Without fused instructions in the chosen path a multiply-add takes two.
double fma_peak(double seconds);

}  // namespace dwsep
