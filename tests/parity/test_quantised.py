"""NF4 against bitsandbytes, block by block."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

from lora_jax.models.quantised import NF4, quantise  # noqa: E402


@pytest.mark.parametrize("degrees", [4, 1000], ids=["heavy tails", "normal"])
def test_nf4_is_bitsandbytes(degrees):
    kernel = 0.02 * np.random.default_rng(0).standard_t(degrees, size=(384, 512)).astype(np.float32)
    theirs = torch.from_numpy(np.ascontiguousarray(kernel.T))
    packed, state = functional.quantize_4bit(theirs, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = quantise(jnp.asarray(kernel), "nf4")
    np.testing.assert_array_equal(state.code.numpy(), NF4)

    flat = packed.numpy().reshape(-1)  # two neighbouring inputs a byte, the first in the high bits
    codes = np.stack([flat >> 4, flat & 15], 1).reshape(512, 384).T
    pairs = np.asarray(ours.codes).reshape(6, 32, 512)
    np.testing.assert_array_equal(np.concatenate([pairs & 15, pairs >> 4], 1).reshape(384, 512), codes)

    # What is 8 bits of a block's absmax is a floating number there and an even step here: the errors are alike.
    back = functional.dequantize_4bit(packed, state).numpy().T
    errors = [np.square(weights - kernel).mean() ** 0.5 for weights in (np.asarray(ours.astype(jnp.float32)), back)]
    assert errors[0] < 1.01 * errors[1]
