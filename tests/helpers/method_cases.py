"""The methods and variants that tests/methods/test_properties.py checks, and what is expected of each."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.delta import parameters

Shapes = Mapping[str, tuple[int, ...]]  # of the parameters of a model, by path

NONLINEAR = "it is not linear in its input"
SOFTMAX = "its keys and values enter attention's softmax"


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with some settings.

    Attributes:
      method: the value of ``method=``.
      settings: settings that differ from the method's defaults.
      neighbour: settings of another run that shares a pack with it.
      formula: the number of trained parameters without the head, from the shapes of the base's parameters.
      start: why the function at step 0 is not the base's. None: it is.
      merges: whether it merges.
      refused: why a family of models is refused, by the name of the family.
    """

    method: str
    settings: Mapping[str, Any]
    neighbour: Mapping[str, Any]
    formula: Callable[[Shapes], int]
    start: str | None = None
    merges: bool = True
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


def shapes_of(base: Any) -> Shapes:
    """Returns the shapes of the parameters of `base` outside of a classifier's head."""
    return {path: tuple(value.shape) for path, value in parameters(base).items() if not path.startswith("head/")}


def total(shapes: Shapes, pattern: str) -> int:
    """Returns the number of parameters at paths that `pattern` matches."""
    return sum(math.prod(shape) for path, shape in shapes.items() if re.search(pattern, path))


def pairs(rank: int, pattern: str) -> Callable[[Shapes], int]:
    """Returns the formula of low-rank pairs: L·r·(d_in + d_out) for each kernel that `pattern` matches."""
    return lambda shapes: sum(
        layers * rank * (d_in + d_out)
        for path, (layers, d_in, d_out) in ((p, s) for p, s in shapes.items() if re.search(pattern, p))
    )


def bottlenecks(slots: int, width: int, *, layers: int, norm: bool = False) -> Callable[[Shapes], int]:
    """Returns the formula of bottleneck adapters: L̂·(2dr + r + d), and 2·L̂·d where they have layer norms."""

    def formula(shapes: Shapes) -> int:
        d_model = next(shape[-1] for path, shape in shapes.items() if path.endswith("/layers/attn/o/kernel"))
        return slots * layers * (2 * d_model * width + width + d_model + 2 * d_model * norm)

    return formula


def vectors(rank: int, pattern: str) -> Callable[[Shapes], int]:
    """Returns the formula of VeRA: L·(r + d_out) for each kernel that `pattern` matches."""
    return lambda shapes: sum(s[0] * (rank + s[-1]) for path, s in shapes.items() if re.search(pattern, path))


def blocks(rank: int, pattern: str) -> Callable[[Shapes], int]:
    """Returns the formula of MiSS: L·r·d_out for each kernel that `pattern` matches."""
    return lambda shapes: sum(s[0] * rank * s[-1] for path, s in shapes.items() if re.search(pattern, path))


LINEAR = r"/layers/(attn|mlp)/\w+/kernel$"
QV = r"/layers/attn/[qv]/kernel$"
KEYS = "backbone/layers/attn/k/kernel"
SHORT = {"task__buckets": (12,)}  # the families' models have positions for 20 tokens
ATTENDED = "all tokens attend to what it adds"
WITHOUT_BIASES = "none of them has a bias to train in this model"

CASES: dict[str, Case] = {
    "lora": Case("lora", {"rank": 2}, {"rank": 4, "targets": "qv@1:"}, pairs(2, LINEAR)),
    "full": Case("full", {}, {"seed": 1}, lambda shapes: total(shapes, "")),
    "top_layers": Case(
        "top_layers",
        {"method__layers": 1},
        {"method__layers": 2},
        lambda shapes: total(shapes, "/layers/") // 2,  # of two layers
    ),
    "layerwise": Case(
        "layerwise",
        {"method__multipliers": (0.0, 1.0)},
        {"method__decay": 0.5},
        lambda shapes: total(shapes, "") - total(shapes, "/layers/") // 2,
    ),
    "bitfit": Case(
        "bitfit",
        {},
        {"targets": "qv@1:", "method__norms": False},
        lambda shapes: total(shapes, r"/layers/(attn|mlp)/\w+/bias$|norm/bias$"),
        refused=dict.fromkeys(("llama", "qwen3", "gemma", "gemma2", "gemma3"), WITHOUT_BIASES),
    ),
    "adapter_h": Case(
        "adapter_h",
        {"method__bottleneck": 3},
        {"method__bottleneck": 5, "method__layers": "1:", "method__init": "normal"},
        bottlenecks(2, 3, layers=2),
        merges=False,
    ),
    "adapter_p": Case(
        "adapter_p",
        {"method__bottleneck": 3},
        {"method__bottleneck": 5, "method__layers": "1:"},
        bottlenecks(1, 3, layers=2),
        merges=False,
    ),
    "adapter_l": Case(
        "adapter_l",
        {"method__bottleneck": 3, "method__layers": ":1"},
        {"method__bottleneck": 5},
        bottlenecks(1, 3, layers=1, norm=True),
        merges=False,
    ),
    "adapter_d": Case(
        "adapter_d",
        {"method__bottleneck": 3, "method__drop": 1},
        {"method__bottleneck": 5, "method__drop": 0},
        bottlenecks(1, 3, layers=1),
        merges=False,
    ),
    "prefix": Case(
        "prefix",
        {"method__length": 3, "method__layers": "1:", "method__init_std": 1.0, **SHORT},
        {"method__length": 5, **SHORT},
        lambda shapes: 3 * (shapes[KEYS][-1] + shapes[KEYS.replace("/k/", "/v/")][-1]),  # in one of two layers
        start=ATTENDED,
        merges=False,
        refused={"deberta": "DeBERTa's attention needs the distance of every key"},
    ),
    **{
        name: Case(
            name,
            {**settings, **SHORT},
            {**neighbour, "method__init": "normal", **SHORT},
            lambda shapes, numbers=numbers: numbers * shapes[KEYS][-2],
            start=ATTENDED,
            merges=False,
            refused={"vit": "this model reads pixels, not tokens"},
        )
        for name, settings, neighbour, numbers in (
            ("prompt", {"method__length": 3}, {"method__length": 5}, 3),
            ("preembed", {"method__prefix": 2, "method__infix": 1}, {"method__prefix": 0, "method__infix": 4}, 3),
            ("prelayer", {"method__prefix": 2, "method__infix": 1}, {"method__prefix": 0, "method__infix": 4}, 2 * 3),
        )
    },
    "vera": Case("vera", {"rank": 3}, {"rank": 40, "targets": "qv@1:"}, vectors(3, LINEAR)),
    "miss": Case("miss", {"rank": 3}, {"rank": 5, "targets": "qv@1:"}, blocks(3, LINEAR)),
}
