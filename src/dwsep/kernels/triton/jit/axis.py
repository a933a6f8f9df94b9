"""One spatial axis of a convolution as the kernels walk it: outputs in classes and residues, taps in steps.

Both directions are one pattern. The forward pass computes ``out[i] = sum_t in[S i - low + D t] w[t]``. The input
gradient of a strided convolution falls apart into S classes of positions, ``S i + first``: each sees only the taps
``k0, k0 + S/g, ...`` with g = gcd(S, D), and reads the output's gradient at unit stride. So a class is a convolution of
its own and no tap asks for a remainder.

Where taps are U elements apart, outputs ``SPACING`` apart read the same inputs one tap further on. A thread computes
Q of those from a window of registers, so that an input is loaded once for all of them.
"""

import triton
import triton.language as tl


@triton.jit
def class_first(rho, low, S: tl.constexpr):
    """The first position of a class of the input gradient: those with (position + low) % S == rho."""
    if S > 1:
        return (rho + ((-low) % S + S)) % S
    else:
        return rho * 0


@triton.jit
def class_first_tap(rho, INVERSE: tl.constexpr, K: tl.constexpr, S: tl.constexpr, G: tl.constexpr):
    """The first tap that a class sees; K, and so none, where the stride and the dilation leave a hole."""
    if S > 1:
        tap = ((rho // G) * INVERSE) % (S // G)
        if G > 1:
            tap = tl.where(rho % G == 0, tap, K)
        return tap
    else:
        return rho * 0


@triton.jit
def within(position, size):
    """Whether 0 <= position < size, in one comparison."""
    return position.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)
