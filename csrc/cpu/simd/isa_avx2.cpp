#define DWSEP_ISA_NAMESPACE avx2
#define DWSEP_ISA_NAME "avx2"
#define DWSEP_LANES 8
#define DWSEP_COLUMN_VECTORS 2
#define DWSEP_TILE_PIXELS 6

#include "cpu/simd/kernels.inc"
