"""The parts of VeRA's update (Kopiczko et al., arXiv 2310.11454): random matrices, and the vectors that scale them.

ΔW = A·diag(d)·B·diag(b) for a kernel ``[d_in, d_out]``. The paper writes W + Λ_b·B·Λ_d·A for the transposed kernel.

Zero-padding the rank is exact: where A's columns, B's rows and d are zero, ΔW is the same and d has no gradient. Zeros
in both d and b are neutral: the gradient of each is a multiple of the other.
"""

from jaxtyping import Array, Float

from lora_jax.adapters.padded import Padded, adapter, padded_axis


@adapter
class VeraVectors(Padded):
    """The trained vectors of one site: d scales the ranks, b the outputs."""

    d: Float[Array, "*layers rank"] = padded_axis(-1)
    b: Float[Array, "*layers d_out"]


@adapter
class VeraProjections(Padded):
    """The frozen matrices of one site, which all its layers share: the parts of A and B that fit its kernel."""

    a: Float[Array, "d_in rank"] = padded_axis(-1)
    b: Float[Array, "rank d_out"] = padded_axis(-2)
