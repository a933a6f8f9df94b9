#define DWSEP_ISA_NAMESPACE avx2
#define DWSEP_ISA_NAME "avx2"
#define DWSEP_LANES 8
#define DWSEP_COLUMN_VECTORS 2
#define DWSEP_TILE_PIXELS 6
#define DWSEP_ACCUMULATORS 12

#include "cpu/simd/kernels.inc"
