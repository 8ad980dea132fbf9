"""The methods and variants that tests/methods/test_properties.py checks, and what is expected of each."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from helpers.families import CONFIGS

from lora_jax.delta import parameters

Shapes = Mapping[str, tuple[int, ...]]  # of the parameters of a model, by path

LINEAR = r"/layers/(attn|mlp)/\w+/kernel$"
QV = r"/layers/attn/[qv]/kernel$"
QKVO = r"/layers/attn/[qkvo]/kernel$"
KEYS = "backbone/layers/attn/k/kernel"
LAYERS = 2  # of the families' models
D_HEAD = 8
SHORT = {"task__buckets": (12,)}  # the families' models have positions for 20 tokens

ATTENDED = "all tokens attend to what it adds"
NONLINEAR = "it is not linear"
SOFTMAX = "its keys and values enter attention's softmax"
TOKENS = "no weights of the base insert tokens"
NO_BIASES = "none of them has a bias to train in this model"
WITHOUT_BIASES = ("llama", "qwen3", "gemma", "gemma2", "gemma3")


@dataclasses.dataclass(frozen=True)
class Formula:
    """The number of trained parameters without the head.

    Attributes:
      text: the formula, in the letters of the LoRA paper. L is the number of layers, a sum is over the targets.
      count: computes it from the shapes of the base's parameters.
    """

    text: str
    count: Callable[[Shapes], int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with some settings.

    Attributes:
      method: the value of ``method=``.
      settings: settings that differ from the method's defaults.
      neighbour: settings of another run that shares a pack with it.
      formula: the number of trained parameters.
      start: why the function at step 0 is not the base's. None: it is.
      unmerged: why it cannot be merged. None: it can.
      refused: why families of models are refused, by the names of the families.
      families: the families that it is checked on, with those that are refused.
    """

    method: str
    settings: Mapping[str, Any]
    neighbour: Mapping[str, Any]
    formula: Formula
    start: str | None = None
    unmerged: str | None = None
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    families: tuple[str, ...] = tuple(CONFIGS)


def shapes_of(base: Any) -> Shapes:
    """Returns the shapes of the parameters of `base` outside of a classifier's head."""
    return {path: tuple(value.shape) for path, value in parameters(base).items() if not path.startswith("head/")}


def matching(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """Returns the shapes of the parameters at paths that `pattern` matches."""
    return [shape for path, shape in shapes.items() if re.search(pattern, path)]


def total(shapes: Shapes, pattern: str) -> int:
    """Returns the number of parameters at paths that `pattern` matches."""
    return sum(math.prod(shape) for shape in matching(shapes, pattern))


def kernels(text: str, pattern: str, count: Callable[[int, int], int]) -> Formula:
    """Returns the formula of what each kernel that `pattern` matches gets in each layer: `count` of (d_in, d_out)."""
    return Formula(text, lambda shapes: sum(layers * count(*sides) for layers, *sides in matching(shapes, pattern)))


def pairs(rank: int, pattern: str) -> Formula:
    """Returns the formula of low-rank pairs (section 4.1 of the paper)."""
    return kernels("L·Σ r(d_in + d_out)", pattern, lambda d_in, d_out: rank * (d_in + d_out))


def bottlenecks(text: str, slots: int, width: int, *, layers: int, norm: bool = False) -> Formula:
    """Returns the formula of bottleneck adapters: d → r → d with two biases (section 5.1 of the paper)."""

    def count(shapes: Shapes) -> int:
        d_model = next(shape[-1] for path, shape in shapes.items() if path.endswith("/layers/attn/o/kernel"))
        return slots * layers * (2 * d_model * width + width + d_model + 2 * d_model * norm)

    return Formula(text, count)


def shared_a(rank: int) -> Formula:
    """Returns the formula of pairs on q, k, v and o whose q, k and v share an A."""
    saved = r"/layers/attn/[kv]/kernel$"
    return Formula(
        "L·(r·d + Σ r·d_out) for q, k and v",
        lambda shapes: (
            pairs(rank, QKVO).count(shapes) - sum(layers * rank * d_in for layers, d_in, _ in matching(shapes, saved))
        ),
    )


def heads(rank: int) -> Formula:
    """Returns the formula of factors per head on q and v: an A for each head and one B of a head's width."""
    return kernels("L·Σ r(h·d + d_head)", QV, lambda d_in, d_out: rank * (d_out // D_HEAD * d_in + D_HEAD))


def variant(formula: Formula, settings: Mapping[str, Any], neighbour: Mapping[str, Any] | None = None) -> Case:
    """Returns the case of a variant of LoRA. `neighbour` has other settings than the variant's of a run beside it."""
    beside = settings if neighbour is None else neighbour
    first, second = {"rank": 2, **settings}, {"rank": 4, "targets": "qv@1:", **beside}
    return Case("lora", first, second, formula, families=("bert", "llama"))


CASES: dict[str, Case] = {
    "lora": Case("lora", {"rank": 2}, {"rank": 4, "targets": "qv@1:"}, pairs(2, LINEAR)),
    "lora, DoRA": variant(
        kernels("L·Σ (r(d_in + d_out) + d_out)", LINEAR, lambda d_in, d_out: 2 * (d_in + d_out) + d_out),
        {"method__dora": True},
    ),
    "lora, PiSSA": variant(pairs(2, LINEAR), {"method__init": "pissa"}),
    "lora, LoRA-GA": variant(pairs(2, LINEAR), {"method__init": "lora_ga"}, {"method__init": "pissa"}),
    "lora, LoRA-FA": variant(
        kernels("L·Σ r·d_out", LINEAR, lambda d_in, d_out: 2 * d_out),
        {"method__freeze_a": True},
    ),
    "lora, LoRA+": variant(pairs(2, LINEAR), {"method__lr_ratio": 4.0}, {}),
    "lora, LoRA Dropout": variant(pairs(2, LINEAR), {"method__factor_dropout": 0.2}),
    "lora, DoRA + PiSSA + LoRA-FA": variant(
        kernels("L·Σ (r + 1)·d_out", LINEAR, lambda d_in, d_out: 3 * d_out),
        {"method__dora": True, "method__init": "pissa", "method__freeze_a": True, "method__scaling": "rslora"},
        {"method__dora": True, "method__init": "pissa", "method__freeze_a": True},
    ),
    "lora, one A for q, k, v": variant(
        shared_a(2), {"targets": "qkvo", "method__share_a": "qkv"}, {"method__share_a": "qkv"}
    ),
    "lora, an A per head": variant(heads(2), {"targets": "qv", "method__per_head": True}, {"method__per_head": True}),
    "lora, biases and norms": Case(
        "lora",
        {"rank": 2, "method__bias": "targets", "method__train": "re:mlp_norm/scale$"},
        {"rank": 4, "targets": "qv@1:"},
        Formula(
            "L·Σ r(d_in + d_out) + biases + norms",
            lambda shapes: (
                pairs(2, LINEAR).count(shapes)
                + total(shapes, r"/layers/(attn|mlp)/\w+/bias$")
                + total(shapes, r"/layers/mlp_norm/scale$")
            ),
        ),
        refused=dict.fromkeys(WITHOUT_BIASES, "no bias of this model would train"),
    ),
    "full": Case("full", {}, {"seed": 1}, Formula("all", lambda shapes: total(shapes, ""))),
    "top_layers": Case(
        "top_layers",
        {"method__layers": 1},
        {"method__layers": 2},
        Formula("the last k of L layers", lambda shapes: total(shapes, "/layers/") // LAYERS),
    ),
    "layerwise": Case(
        "layerwise",
        {"method__multipliers": (0.0, 1.0)},
        {"method__decay": 0.5},
        Formula("all but layers of rate 0", lambda shapes: total(shapes, "") - total(shapes, "/layers/") // LAYERS),
    ),
    "bitfit": Case(
        "bitfit",
        {},
        {"targets": "qv@1:", "method__norms": False},
        Formula("all biases of layers", lambda shapes: total(shapes, r"/layers/(attn|mlp)/\w+/bias$|norm/bias$")),
        refused=dict.fromkeys(WITHOUT_BIASES, NO_BIASES),
    ),
    "adapter_h": Case(
        "adapter_h",
        {"method__bottleneck": 3},
        {"method__bottleneck": 5, "method__layers": "1:", "method__init": "normal"},
        bottlenecks("2L(2dr + r + d)", 2, 3, layers=2),
        unmerged=NONLINEAR,
    ),
    "adapter_p": Case(
        "adapter_p",
        {"method__bottleneck": 3},
        {"method__bottleneck": 5, "method__layers": "1:"},
        bottlenecks("L(2dr + r + d)", 1, 3, layers=2),
        unmerged=NONLINEAR,
    ),
    "adapter_l": Case(
        "adapter_l",
        {"method__bottleneck": 3, "method__layers": ":1"},
        {"method__bottleneck": 5},
        bottlenecks("L(2dr + r + d) + 2Ld", 1, 3, layers=1, norm=True),
        unmerged=NONLINEAR,
    ),
    "adapter_d": Case(
        "adapter_d",
        {"method__bottleneck": 3, "method__drop": 1},
        {"method__bottleneck": 5, "method__drop": 0},
        bottlenecks("(L - drop)(2dr + r + d)", 1, 3, layers=1),
        unmerged=NONLINEAR,
    ),
    "prefix": Case(
        "prefix",
        {"method__length": 3, "method__layers": "1:", "method__init_std": 1.0, **SHORT},
        {"method__length": 5, **SHORT},
        Formula(
            "L·l(d_k + d_v)", lambda shapes: 3 * sum(shapes[path][-1] for path in (KEYS, KEYS.replace("/k/", "/v/")))
        ),
        start=ATTENDED,
        unmerged=SOFTMAX,
        refused={"deberta": "DeBERTa's attention needs the distance of every key"},
    ),
    **{
        name: Case(
            name,
            {**settings, **SHORT},
            {**neighbour, "method__init": "normal", **SHORT},
            Formula(text, lambda shapes, numbers=numbers: numbers * shapes[KEYS][-2]),
            start=ATTENDED,
            unmerged=TOKENS,
            refused={"vit": "this model reads pixels, not tokens"},
        )
        for name, settings, neighbour, text, numbers in (
            ("prompt", {"method__length": 3}, {"method__length": 5}, "l·d", 3),
            (
                "preembed",
                {"method__prefix": 2, "method__infix": 1},
                {"method__prefix": 0, "method__infix": 4},
                "d(l_p + l_i)",
                3,
            ),
            (
                "prelayer",
                {"method__prefix": 2, "method__infix": 1},
                {"method__prefix": 0, "method__infix": 4},
                "L·d(l_p + l_i)",
                6,
            ),
        )
    },
    "vera": Case(
        "vera",
        {"rank": 3},
        {"rank": 40, "targets": "qv@1:"},
        kernels("L·Σ (r + d_out)", LINEAR, lambda d_in, d_out: 3 + d_out),
    ),
    "miss": Case(
        "miss",
        {"rank": 3},
        {"rank": 5, "targets": "qv@1:"},
        kernels("L·Σ r·d_out", LINEAR, lambda d_in, d_out: 3 * d_out),
    ),
}
