"""Measures HF PEFT: trains and scores one run after another, on the same inputs as lora_jax, in one process.

    python -m lora_jax.bench.peft '{"start_time": ..., "inputs": file.npz, "model": folder, "mode": "eager", ...}'

This module does not import JAX. The comparison favours PEFT in two ways: it gets padded batches and need not tokenise,
and all its runs share one process, so it imports torch and reads the weights once.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.bench import inputs
from lora_jax.bench.clock import Clock

# Eager or compiled, and matrix products in float32 or, under autocast, in bfloat16.
MODES = ("eager", "eager-bf16", "compile", "compile-bf16")
# PEFT's names of the encoder's linear layers by lora_jax's names. Mean pooling does not use the pooler, so it is not
# adapted.
SITES = {
    "attn/q": "attention.self.query",
    "attn/k": "attention.self.key",
    "attn/v": "attention.self.value",
    "attn/o": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}


def classifier(folder: Path, init: dict[str, np.ndarray], *, alpha: float):
    """Builds BertModel with PEFT's LoRA, mean pooling over tokens, and a linear head.

    Args:
      folder: the folder of the checkpoint.
      init: the initial A, B and head, by path in lora_jax.
      alpha: LoRA's alpha.
    """
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
    slots = {path.removesuffix("/adapter/a"): array for path, array in init.items() if path.endswith("/adapter/a")}
    rank = next(iter(slots.values())).shape[-1]
    target_modules = {
        f"encoder.layer.{i}.{name}" for name in SITES.values() for i in range(len(next(iter(slots.values()))))
    }
    scale: Any = alpha  # PEFT declares an int, but accepts any number
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules=sorted(target_modules))
    model = Classifier(get_peft_model(bert, config), *init["head/kernel/value"].shape)
    state = {"head.weight": init["head/kernel/value"].T, "head.bias": init["head/bias/value"]}
    for path, a in slots.items():
        name = SITES[path.removeprefix("backbone/layers/")]
        for i in range(len(a)):
            module = f"backbone.base_model.model.encoder.layer.{i}.{name}"
            state[f"{module}.lora_A.default.weight"] = a[i].T
            state[f"{module}.lora_B.default.weight"] = init[f"{path}/adapter/b"][i].T
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    if trained != set(state):
        raise ValueError(f"PEFT trains {sorted(trained - set(state))}, and not {sorted(set(state) - trained)}")
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    return model


def train(model, batches: list[inputs.TokenBatch], *, lr: float, warmup: int, steps: int, clip: float, mode: str):
    """Trains on `batches` with AdamW without weight decay.

    The learning rate rises linearly over `warmup` steps, and falls to zero at `steps`. There may be fewer batches.

    Returns:
      The loss and the seconds of each step.
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
        start_time = time.time()
        optimizer.zero_grad(set_to_none=True)
        with autocast(mode):
            loss = loss_of(model(as_tensor(tokens), as_tensor(mask)).float(), as_tensor(labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        seconds.append(time.time() - start_time)
    return losses, seconds


def score(model, data: inputs.Inputs, mode: str) -> float:
    """Returns the accuracy on the test set."""
    import torch

    model.eval()
    correct = total = 0
    for (tokens, mask, labels), counts in zip(data.test, data.test_counts, strict=True):
        with torch.inference_mode(), autocast(mode):
            predicted = model(as_tensor(tokens), as_tensor(mask)).argmax(-1).numpy()
        correct += int(((predicted == labels) & counts).sum())
        total += int(counts.sum())
    return correct / total


def autocast(mode: str):
    """Returns the autocast context of `mode`."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if mode.endswith("bf16") else contextlib.nullcontext()


def as_tensor(array: np.ndarray):
    """Converts `array` to int64 for torch, as its embeddings and losses need."""
    import torch

    return torch.from_numpy(array.astype(np.int64))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and scores the runs of the inputs in turn. ``job["probe"]`` limits it to so many steps of the last run."""
    clock = Clock(job["start_time"])
    import torch
    import transformers  # noqa: F401 (imported here so that the clock books it as an import)
    from peft import LoraConfig  # noqa: F401

    clock.lap("imports")
    mode, probe = job["mode"], job.get("probe")
    data = inputs.load(Path(job["inputs"]))
    clock.lap("load")
    accuracy, losses, seconds = [], [], []
    for rank, alpha, init in list(zip(job["ranks"], job["alphas"], data.inits, strict=True))[-1 if probe else 0 :]:
        assert init["backbone/layers/attn/q/adapter/a"].shape[-1] == rank
        model = classifier(Path(job["model"]), init, alpha=alpha)
        if mode.startswith("compile"):
            # Torch compiles one program per length, and limits the programs of a function.
            torch._dynamo.config.cache_size_limit = 64
            model = torch.compile(model, dynamic=False)
        clock.lap("load")
        optimization = {key: job[key] for key in ("lr", "warmup", "steps", "clip")}
        run_losses, run_seconds = train(model, data.train[:probe], **optimization, mode=mode)
        clock.lap("train")
        losses.append(run_losses)
        seconds.append(run_seconds)
        if not probe:
            accuracy.append(score(model, data, mode))
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
