"""The step bench: PEFT's model computes the same function as lora_jax's, with the FLOPs that `shapes` counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.bench import ours_step, shapes
from lora_jax.bench.cases import LoraJaxCase, PeftCase
from lora_jax.delta import parameters
from lora_jax.models.llama import NAMES
from lora_jax.train.losses import token_cross_entropy

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

BATCH, TOKENS, RANK = 2, 12, 3


def peft_case(method: str, **more) -> PeftCase:
    return PeftCase(shape="tiny", method=method, batch=BATCH, tokens=TOKENS, ranks=(RANK,), dtype="float32", **more)


def state_dict(base) -> dict:
    """Our weights under transformers' names."""
    held = {path: np.asarray(leaf) for path, leaf in parameters(base).items()}
    found = {"lm_head.weight": held["lm_head/kernel"].T}
    for name, path in NAMES.items():
        value = held.get(f"backbone/{path}")
        if value is not None and "{}" in name:
            found |= {f"model.{name.format(i)}": layer.T for i, layer in enumerate(value)}
        elif value is not None:
            found[f"model.{name}"] = value
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in found.items()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_sides_start_as_the_same_function(method):
    from lora_jax.bench.peft_step import Stepper, model_of

    case = peft_case(method)
    base = ours_step.base_of(LoraJaxCase(shape="tiny", batch=BATCH, tokens=TOKENS, dtype="float32"))
    model = model_of(case, "cpu", case.ranks[0])
    whole = model.get_base_model() if method == "lora" else model
    names = {name.replace(".base_layer", ""): name for name in whole.state_dict() if "lora_" not in name}
    own = state_dict(base)
    assert set(names) == set(own)
    whole.load_state_dict({names[name]: value for name, value in own.items()}, strict=False)

    tokens = np.random.default_rng(0).integers(0, 96, (BATCH, TOKENS))
    labels = np.concatenate([tokens[:, 1:], np.full((BATCH, 1), -1)], axis=1)
    hidden = base.backbone(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    losses, counts, _ = token_cross_entropy(base.logits, hidden, jnp.asarray(labels))
    stepper = Stepper(case, model, "cpu", torch.tensor(tokens))
    first = float(stepper.step())
    np.testing.assert_allclose(first, losses.sum() / counts.sum(), rtol=1e-5)
    assert float(stepper.step()) < first
    trained = sum(value.numel() for value in stepper.trained)
    held = sum(leaf.size for leaf in jax.tree.leaves(base))
    pairs = 2 * sum(RANK * (d_in + d_out) for d_in, d_out in shapes.linears("tiny").values())
    assert trained == {"lora": pairs, "full": held}[method]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_torch_counts_the_flops_that_we_count(method):
    from torch.utils.flop_counter import FlopCounterMode

    from lora_jax.bench.peft_step import Stepper, model_of

    case = peft_case(method)
    stepper = Stepper(case, model_of(case, "cpu", case.ranks[0]), "cpu")
    with FlopCounterMode(display=False) as counter:
        stepper.step()
    found = counter.get_flop_counts()["Global"][torch.ops.aten.mm]  # linear layers; attention is another operation
    tokens = BATCH * TOKENS
    expected = shapes.FLOPS_PER_WEIGHT[method] * shapes.weights("tiny") * tokens
    if method == "lora":
        expected += shapes.adapter_flops("tiny", RANK, BATCH, TOKENS)
        # Nothing below the first block trains, so its q, k and v pass no gradient on.
        linears = shapes.linears("tiny")
        expected -= 2 * tokens * sum(d_in * d_out + RANK * d_in for d_in, d_out in (linears[name] for name in "qkv"))
    assert found == expected
