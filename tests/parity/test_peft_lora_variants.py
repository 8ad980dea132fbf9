"""LoRA's variants here and in Hugging Face's PEFT: from the same start, on the same batches, the same training."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers.peft_reference import (
    LAYERS,
    SETTINGS,
    SITES,
    STEPS,
    TARGETS,
    adapted,
    assert_merged_equal,
    copy_pairs,
    packed_run,
    reference,
    train_reference,
)

from lora_jax.adapters import LowRank, OutputFactor

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
optimizers = pytest.importorskip("peft.optimizers")

RANK, ALPHA, RATIO = 8, 16, 4.0
# The variant here, and there.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rslora": ({"method__scaling": "rslora"}, {"use_rslora": True}),
    "dora": ({"method__dora": True}, {"use_dora": True}),
    # PEFT's own singular vectors, whose signs may differ, have the product and so the residual that ours have.
    "pissa": ({"method__init": "pissa"}, {"init_lora_weights": "pissa"}),
    "dora with pissa": (
        {"method__init": "pissa", "method__dora": True},
        {"init_lora_weights": "pissa", "use_dora": True},
    ),
    "lora+": ({"method__lr_ratio": RATIO}, {}),
    # A that has no gradient, which Trainer's optimizer skips. PEFT's create_lorafa_optimizer also changes B's gradient.
    "lora-fa": ({"method__freeze_a": True}, {}),
    "all biases": ({"method__bias": "all"}, {"bias": "all"}),
}


def loraplus(model, run):
    """PEFT's optimizer for LoRA+, which gives the ratio to all vectors too. Here the only one is the head's bias."""
    optimizer = optimizers.create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=run.lr,
        loraplus_lr_ratio=RATIO,
        loraplus_weight_decay=run.optim.weight_decay,
        betas=(run.optim.b1, run.optim.b2),
        eps=run.optim.eps,
    )
    vectors = optimizer.param_groups[-1]
    assert [value.ndim for value in vectors["params"]] == [1]
    vectors["lr"] = run.lr
    return optimizer


def pair_starts(pack):
    """The initial A and B of every site, wherever they are."""
    init = pack.inits[0]
    pairs = dict(init.params)
    for path, value in init.params.items():
        if isinstance(value, OutputFactor):
            pairs[path] = LowRank(init.constants[f"{path.removesuffix('/adapter')}/a"].a, value.b)
    return pairs


@pytest.mark.parametrize("name", VARIANTS)
def test_training_follows_pefts(pack_of, configure, name):
    ours, theirs = VARIANTS[name]
    run = configure(rank=RANK, alpha=ALPHA, **SETTINGS, **ours)
    base, pack = packed_run(pack_of, run)
    start = pack.inits[0].params
    config = peft.LoraConfig(
        **{"task_type": "SEQ_CLS", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": TARGETS},
        **theirs,
    )
    model = reference(config, start)
    copy_pairs(model, pair_starts(pack))
    if run.method.dora:
        for site in SITES:
            for layer in range(LAYERS):
                magnitude = adapted(model, site, layer).lora_magnitude_vector["default"].weight.detach().numpy()
                np.testing.assert_allclose(
                    start[f"backbone/layers/{site}/magnitude"].value[layer], magnitude, rtol=1e-5
                )
    if run.method.freeze_a:
        for parameter_name, parameter in model.named_parameters():
            if "lora_A" in parameter_name:
                parameter.requires_grad_(False)
    trained = train_reference(model, run, pack.batches, loraplus(model, run) if name == "lora+" else None)
    pack.train(base, STEPS)

    assert trained.trainable == pack.inits[0].trainable == sum(leaf.size for leaf in jax.tree.leaves(start))
    np.testing.assert_allclose(pack.metrics.grad_norm[:, 0], trained.norms, rtol=2e-3)
    difference = np.abs(pack.metrics.loss[:, 0] - trained.losses).max()
    print(f"\n{name}: in {STEPS} steps the loss differs by {difference:.1e} from PEFT's")
    assert difference < 1e-3
    assert_merged_equal(base, pack.materialised(0), model, tolerance=3e-4)
