"""The settings of each method. Needs no JAX.

A settings class also has the facts about its method that are needed before JAX is imported: which top-level settings
it reads, and whether it trains the base.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_jax.config.settings import LARGEST_ALPHA, SMALLEST_ALPHA, Count, Fraction, PositiveReal, Settings, Text, data

BaseStorage = Literal["auto", "f32", "bf16", "int8", "nf4"]
QUANTISED: tuple[BaseStorage, ...] = ("int8", "nf4")  # too few bits to train


class MethodSettings(Settings):
    """The settings that every method has."""

    title: ClassVar[str]  # the name in reports
    # The top-level settings `rank`, `alpha` and `targets` that the method reads. The others do not affect a run.
    reads: ClassVar[frozenset[str]] = frozenset()
    trains_base: ClassVar[bool] = False  # whether every weight of the base trains, so it cannot be quantised

    name: str
    lr: PositiveReal = data()  # the default of the top-level setting `lr`

    @property
    def drops_out(self) -> bool:
        """Whether the method has dropout of its own."""
        return False


class LoraSettings(MethodSettings):
    """LoRA (arXiv 2106.09685)."""

    title: ClassVar[str] = "LoRA"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets"})

    name: Literal["lora"]
    scaling: Literal["lora", "rslora", "constant"] = data("lora")
    init: Literal["uniform", "gaussian"] = data("uniform")
    dropout: Fraction = data(0.0)
    # The default is not {}, because Hydra could not add keys to it from the command line.
    rank_pattern: dict[Text, Count] | None = data(None)
    alpha_pattern: dict[Text, Annotated[PositiveReal, Field(ge=SMALLEST_ALPHA, le=LARGEST_ALPHA)]] | None = data(None)

    @property
    def drops_out(self) -> bool:
        return self.dropout > 0


class FullSettings(MethodSettings):
    """Full fine-tuning: every parameter of the base trains."""

    title: ClassVar[str] = "full fine-tuning"
    trains_base: ClassVar[bool] = True

    name: Literal["full"]


class BitFitSettings(MethodSettings):
    """BitFit (arXiv 2106.10199): only biases train."""

    title: ClassVar[str] = "BitFit"
    reads: ClassVar[frozenset[str]] = frozenset({"targets"})

    name: Literal["bitfit"]
    norms: bool = data(True, description="whether the biases of layer norms train too")


METHOD_SETTINGS = Annotated[LoraSettings | FullSettings | BitFitSettings, Field(discriminator="name")]
