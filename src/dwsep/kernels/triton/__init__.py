"""The depthwise operators for CUDA in Triton. Importing this package needs torch alone; its kernels need ``triton``."""
