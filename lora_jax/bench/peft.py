"""The other side: HF PEFT, one run after another, on the same batches from the same start; one process, one result.

    python -m lora_jax.bench.peft '{"began": ..., "inputs": file.npz, "model": folder, "mode": "eager", ...}'

Nothing of JAX is imported. What PEFT is spared: tokenising, since it is given padded batches; and reading its weights
and importing torch for every run anew, since all runs are in one process.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.bench import inputs
from lora_jax.bench.clock import Clock

# Compiled or not; every matmul in float32, or in bfloat16 under autocast.
MODES = ("eager", "eager-bf16", "compile", "compile-bf16")
# The encoder's linear layers by lora_jax's name; the pooler, which mean pooling does not use, is left out.
SITES = {
    "attn/q": "attention.self.query",
    "attn/k": "attention.self.key",
    "attn/v": "attention.self.value",
    "attn/o": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}


def classifier(folder: Path, start: dict[str, np.ndarray], *, alpha: float):
    """BertModel under PEFT's LoRA, mean pooling over tokens, a linear head; A, B and head as in `start`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertModel

    class Classifier(torch.nn.Module):
        def __init__(self, backbone: torch.nn.Module, width: int, labels: int):
            super().__init__()
            self.backbone = backbone
            self.head = torch.nn.Linear(width, labels)

        def forward(self, tokens, mask):
            hidden = self.backbone(input_ids=tokens, attention_mask=mask).last_hidden_state
            weight = mask[..., None].to(hidden.dtype)
            return self.head((hidden * weight).sum(1) / weight.sum(1))

    bert = BertModel.from_pretrained(
        folder, add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    slots = {path.removesuffix("/adapter/a"): array for path, array in start.items() if path.endswith("/adapter/a")}
    rank = next(iter(slots.values())).shape[-1]
    places = {f"encoder.layer.{i}.{name}" for name in SITES.values() for i in range(len(next(iter(slots.values()))))}
    scale: Any = alpha  # declared an int; any number will do
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules=sorted(places))
    model = Classifier(get_peft_model(bert, config), *start["head/kernel/value"].shape)
    given = {"head.weight": start["head/kernel/value"].T, "head.bias": start["head/bias/value"]}
    for path, ours in slots.items():
        name = SITES[path.removeprefix("backbone/layers/")]
        for i in range(len(ours)):
            where = f"backbone.base_model.model.encoder.layer.{i}.{name}"
            given[f"{where}.lora_A.default.weight"] = ours[i].T
            given[f"{where}.lora_B.default.weight"] = start[f"{path}/lora/b"][i].T
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    if trained != set(given):
        raise ValueError(f"PEFT trains {sorted(trained - set(given))}, and not {sorted(set(given) - trained)}")
    model.load_state_dict({name: torch.tensor(value) for name, value in given.items()}, strict=False)
    return model


def train(model, batches: list[inputs.Words], *, lr: float, warmup: int, steps: int, clip: float, mode: str):
    """Trains on `batches`, the first of `steps`; each step's loss, and its seconds.

    AdamW without decay, the rate up linearly over `warmup` steps and down to zero at `steps`.
    """
    import time

    import torch
    from transformers import get_linear_schedule_with_warmup

    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    loss_of = torch.nn.CrossEntropyLoss()
    model.train()
    losses, seconds = [], []
    for tokens, mask, labels in batches:
        began = time.time()
        optimizer.zero_grad(set_to_none=True)
        with autocast(mode):
            loss = loss_of(model(as_tensor(tokens), as_tensor(mask)).float(), as_tensor(labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        seconds.append(time.time() - began)
    return losses, seconds


def score(model, given: inputs.Inputs, mode: str) -> float:
    """Accuracy over the test set."""
    import torch

    model.eval()
    right = total = 0
    for (tokens, mask, labels), counts in zip(given.test, given.test_counts, strict=True):
        with torch.inference_mode(), autocast(mode):
            guess = model(as_tensor(tokens), as_tensor(mask)).argmax(-1).numpy()
        right += int(((guess == labels) & counts).sum())
        total += int(counts.sum())
    return right / total


def autocast(mode: str):
    """The context that `mode` computes in."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if mode.endswith("bf16") else contextlib.nullcontext()


def as_tensor(array: np.ndarray):
    """`array` for torch, whose embeddings and losses want int64."""
    import torch

    return torch.from_numpy(array.astype(np.int64))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and scores every run of the inputs in turn; with ``job["probe"]``, only so many steps of the last one."""
    clock = Clock(job["began"])
    import torch
    import transformers  # noqa: F401 (imported here so that the clock books it as an import)
    from peft import LoraConfig  # noqa: F401

    clock.lap("imports")
    mode, probe = job["mode"], job.get("probe")
    given = inputs.load(Path(job["inputs"]))
    clock.lap("load")
    accuracy, losses, seconds = [], [], []
    for rank, alpha, start in list(zip(job["ranks"], job["alphas"], given.starts, strict=True))[-1 if probe else 0 :]:
        assert start["backbone/layers/attn/q/adapter/a"].shape[-1] == rank
        model = classifier(Path(job["model"]), start, alpha=alpha)
        if mode.startswith("compile"):
            # One program a length; several are one function's, which has a limit.
            torch._dynamo.config.cache_size_limit = 64
            model = torch.compile(model, dynamic=False)
        clock.lap("load")
        own = {key: job[key] for key in ("lr", "warmup", "steps", "clip")}
        run_losses, run_seconds = train(model, given.train[:probe], **own, mode=mode)
        clock.lap("train")
        losses.append(run_losses)
        seconds.append(run_seconds)
        if not probe:
            accuracy.append(score(model, given, mode))
            clock.lap("eval")
    return {
        "seconds": clock.total,
        "parts": clock.parts,
        "accuracy": accuracy,
        "losses": losses,
        "step_seconds": seconds,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
