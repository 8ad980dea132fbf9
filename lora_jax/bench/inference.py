"""Measures what each method's adapter costs at inference: a forward pass of the adapted model against the base's.

    python -m experiments.bench inference --batch 32 --tokens 64 model.source=hf://owner/name

The weights are those of the settings, and the tokens are random. A method that merges costs nothing once it is merged.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.bench.clock import seconds_per_call, spread
from lora_jax.bench.record import Report, table
from lora_jax.commands.composition import compose_run
from lora_jax.delta import graft, merge
from lora_jax.errors import UserError
from lora_jax.methods import METHODS, method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.setup import load_setup
from lora_jax.train.step import compute_options, program_of

DESCRIPTION = "a forward pass with each method's adapter against the base's"
ROUNDS = 10  # in each, the base and the adapted model take turns, so that a busy machine slows both
REPLACING = ("full", "layerwise", "top_layers", "bitfit")  # their deltas are parameters in place of others


@dataclasses.dataclass(frozen=True)
class Figure:
    """The seconds of a forward pass with one method's adapter.

    Attributes:
      method: the overrides that choose the method.
      seconds: median, least and greatest.
      ratio: the median, over rounds, of the multiple of the base's seconds in the same round.
      merges: whether the adapter merges.
    """

    method: str
    seconds: dict[str, float]
    ratio: float
    merges: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the bench's arguments."""
    parser.add_argument("overrides", nargs="*", help="settings of every run, before --methods: dtype=bfloat16")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[name for name in METHODS if name not in REPLACING],
        help="each a method, or a method with settings: 'lora method.dora=true'",
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)


def run(args: argparse.Namespace) -> Report:
    """Measures every method of `args`."""
    base: nnx.Module | None = None
    figures = []
    for chosen in args.methods:
        overrides = [f"method={chosen.partition(' ')[0]}", *chosen.split()[1:], *args.overrides]
        settings = compose_run(*overrides)
        if base is None:
            base = load_setup(settings).base.model
        method = method_of(settings.method)
        init = method.init(base, settings)
        delta = method.materialise(init.params, init.constants)
        forward = _forward(args.batch, args.tokens, compute_options(program_of(settings)))
        calls = [functools.partial(forward, model) for model in (base, graft(base, delta))]
        plain, adapted = np.transpose(
            [[seconds_per_call(call, jax.block_until_ready, blocks=1)[0] for call in calls] for _ in range(ROUNDS)]
        )
        ratio = float(np.median(adapted / plain))
        figures.append(Figure(chosen, spread(adapted.tolist()), ratio, _merges(base, delta)))
    kind = jax.devices()[0].device_kind
    device = kind.lower().split()[:2][-1]  # "NVIDIA H100 80GB HBM3", "TPU v4", "cpu"
    rows = [
        [f"`{one.method}`", f"{1000 * one.seconds['median']:.2f} ms", f"{one.ratio:.2f}", "1" if one.merges else "–"]
        for one in figures
    ]
    text = table(["method", "forward pass", "times the base's", "merged"], rows)
    text += (
        f"\n\n{args.batch} texts of {args.tokens} random tokens, {settings.dtype}, {settings.model.name}, on {kind}."
    )
    return Report("inference", device, "Inference", text, {"figures": [dataclasses.asdict(one) for one in figures]})


def _forward(batch: int, tokens: int, options: ComputeOptions) -> Any:
    """Returns a compiled forward pass of a model on random tokens without padding."""
    drawn = jnp.asarray(np.random.default_rng(0).integers(1000, 2000, (batch, tokens)), jnp.int32)
    return jax.jit(lambda model: model(drawn, jnp.ones(drawn.shape, bool), options=options))


def _merges(base: nnx.Module, delta: Any) -> bool:
    try:
        merge(base, delta)
    except UserError:
        return False
    return True
