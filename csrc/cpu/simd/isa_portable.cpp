#define DWSEP_ISA_NAMESPACE portable
#define DWSEP_ISA_NAME "portable"
#define DWSEP_LANES 4
#define DWSEP_COLUMN_VECTORS 2
#define DWSEP_TILE_PIXELS 6
#define DWSEP_ACCUMULATORS 12

#include "cpu/simd/kernels.inc"
