#define DWSEP_ISA_NAMESPACE neon
#define DWSEP_ISA_NAME "neon"
#define DWSEP_LANES 4
#define DWSEP_COLUMN_VECTORS 4
#define DWSEP_TILE_PIXELS 6
#define DWSEP_ACCUMULATORS 24

#include "cpu/simd/kernels.inc"
