#define DWSEP_ISA_NAMESPACE avx512_bf16
#define DWSEP_ISA_NAME "avx512_bf16"
#define DWSEP_BF16_PRODUCTS
#define DWSEP_SHARES_VECTORS  // with AVX-512
#define DWSEP_LANES 16
#define DWSEP_COLUMN_VECTORS 2
#define DWSEP_TILE_PIXELS 14
#define DWSEP_ACCUMULATORS 28

#include "cpu/simd/kernels.inc"
