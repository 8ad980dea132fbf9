"""The settings of every method, by the name that ``method=`` takes. Needs no JAX.

A settings class also says what the rest of the program must know of its method before anything is loaded: what it
reads of the settings that stand at the top level, and whether it trains the base.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from lora_jax.config.settings import Fraction, Settings, data

BaseStorage = Literal["auto", "f32", "bf16", "int8", "nf4"]
QUANTISED: tuple[BaseStorage, ...] = ("int8", "nf4")  # too few bits to train


class MethodSettings(Settings):
    """What the settings of every method have."""

    title: ClassVar[str]  # as reports write it
    # Which of the top level's `rank`, `alpha` and `targets` the method reads: the others make no difference to a run.
    reads: ClassVar[frozenset[str]] = frozenset()
    trains_base: ClassVar[bool] = False  # whether every weight of the base trains, so that none may be quantised

    name: str
    # A default only: the run's own rate stands at the top level, so this one is part of no shape.
    lr: PositiveFloat = data()


class LoraSettings(MethodSettings):
    """LoRA (arXiv 2106.09685)."""

    title: ClassVar[str] = "LoRA"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets"})

    name: Literal["lora"]
    scaling: Literal["lora", "rslora", "constant"] = data("lora")
    init: Literal["uniform", "gaussian"] = data("uniform")
    dropout: Fraction = data(0.0)
    # None and not {}, which Hydra would not let a command line fill.
    rank_pattern: dict[str, PositiveInt] | None = data(None)
    alpha_pattern: dict[str, PositiveFloat] | None = data(None)


class FullSettings(MethodSettings):
    """Full fine-tuning: every parameter of the base trains."""

    title: ClassVar[str] = "full fine-tuning"
    trains_base: ClassVar[bool] = True

    name: Literal["full"]


class BitFitSettings(MethodSettings):
    """BitFit (arXiv 2106.10199): biases alone train."""

    title: ClassVar[str] = "BitFit"
    reads: ClassVar[frozenset[str]] = frozenset({"targets"})

    name: Literal["bitfit"]
    norms: bool = data(True, description="whether the biases of layer norms train too")


METHOD_SETTINGS = Annotated[LoraSettings | FullSettings | BitFitSettings, Field(discriminator="name")]
