"""The kernels behind the operators: ``reference`` is plain PyTorch and the truth, the others must equal it."""
