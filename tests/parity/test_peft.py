"""LoRA here and in Hugging Face's PEFT: from the same start, on the same batches, the same training."""

import jax
import jax.numpy as jnp
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
    head_of,
    packed_run,
    reference,
    train_reference,
)

from lora_jax.train.optimizer import hyper_of, learning_rate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK, ALPHA = 8, 16


def test_training_follows_pefts(pack_of, configure):
    run = configure(rank=RANK, alpha=ALPHA, **SETTINGS)
    base, pack = packed_run(pack_of, run)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS)
    model = reference(config, pack.inits[0].params)
    copy_pairs(model, pack.inits[0].params)
    trained = train_reference(model, run, pack.batches)
    pack.train(base, STEPS)

    assert trained.trainable == sum(leaf.size for leaf in jax.tree.leaves(pack.inits[0].params))
    ours = pack.metrics
    loss = np.abs(ours.loss[:, 0] - trained.losses).max()
    delta, materialised = 0.0, pack.materialised(0)
    for site in SITES:
        product = np.asarray(materialised[f"backbone/layers/{site}/adapter"].product())
        for layer in range(LAYERS):
            theirs = adapted(model, site, layer).get_delta_weight("default").detach().numpy().T
            delta = max(delta, np.linalg.norm(product[layer] - theirs) / np.linalg.norm(theirs))
    head = head_of(model).weight.detach().numpy().T
    ours_head = np.asarray(pack.params(0)["head/kernel"].value)
    print(f"\n{STEPS} steps beside PEFT: loss differs by {loss:.1e}, ΔW by {delta:.1e} (relative)")
    np.testing.assert_allclose(ours.lr[:, 0], trained.rates, rtol=1e-6)
    np.testing.assert_allclose(ours.grad_norm[:, 0], trained.norms, rtol=1e-3)
    assert trained.norms.max() > run.optim.clip_norm  # or clipping is not tested
    assert loss < 1e-3
    assert delta < 1e-3
    assert np.linalg.norm(ours_head - head) / np.linalg.norm(head) < 1e-3

    # Merged, both are plain models with the same weights.
    assert_merged_equal(base, materialised, model)


@pytest.mark.parametrize("warmup, steps", [(0.0, 10), (0.06, 50), (0.3, 10), (0.5, 3)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_rates_are_transformers_own(configure, schedule, warmup, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    ups = round(warmup * steps)
    make = {
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, ups, steps),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, ups, steps),
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, ups),
    }
    theirs, expected = make[schedule](), []
    for _ in range(steps + 1):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    hyper = hyper_of(configure(lr=3e-3, optim__warmup=warmup, optim__schedule=schedule), steps)
    ours = jax.vmap(lambda step: learning_rate(hyper, step, schedule))(jnp.arange(steps + 1))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=3e-9)
