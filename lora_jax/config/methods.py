"""The settings of each method. Needs no JAX.

A settings class also has the facts about its method that are needed before JAX is imported: which top-level settings
it reads, and whether it trains the base.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, ValidationInfo, field_validator

from lora_jax.config.settings import (
    LARGEST_ALPHA,
    SMALLEST_ALPHA,
    Count,
    Fraction,
    NonNegativeReal,
    PositiveReal,
    Settings,
    Text,
    Whole,
    data,
)

BaseStorage = Literal["auto", "f32", "bf16", "int8", "nf4"]
QUANTISED: tuple[BaseStorage, ...] = ("int8", "nf4")  # too few bits to train
RESIDUAL_INITS = ("pissa", "lora_ga")  # initial pairs of LoRA whose product is not zero


class MethodSettings(Settings):
    """The settings that every method has."""

    title: ClassVar[str]  # the name in reports
    # The top-level settings `rank`, `alpha` and `targets` that the method reads. The others do not affect a run.
    reads: ClassVar[frozenset[str]] = frozenset()
    trains_base: ClassVar[bool] = False  # whether every weight of the base trains
    full_width: ClassVar[bool] = False  # whether kernels of the base train, so it cannot be quantised

    # Its settings that are numbers of tokens, or of keys of attention, which it adds to every text.
    adds: ClassVar[tuple[str, ...]] = ()

    name: str
    lr: PositiveReal = data()  # the default of the top-level setting `lr`

    @property
    def added_tokens(self) -> int:
        """How many tokens, or keys of attention, the method adds to every text."""
        return sum(getattr(self, name) for name in self.adds)

    @property
    def drops_out(self) -> bool:
        """Whether the method has dropout of its own."""
        return False


class LoraSettings(MethodSettings):
    """LoRA (arXiv 2106.09685) and its variants, which combine."""

    title: ClassVar[str] = "LoRA"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets"})

    name: Literal["lora"]
    scaling: Literal["lora", "rslora", "constant", "sqrt_rank"] = data("lora")
    init: Literal["uniform", "gaussian", "pissa", "lora_ga"] = data("uniform")
    gamma: PositiveReal = data(16.0, description="LoRA-GA: a larger one starts from a smaller A and B")
    gradient_batches: Count = data(8, description="LoRA-GA: batches that the gradient is the mean of")
    lr_ratio: PositiveReal = data(1.0, description="LoRA+: B's learning rate over A's")
    dropout: Fraction = data(0.0, description="on the input of A")
    factor_dropout: Fraction = data(0.0, description="LoRA Dropout: on A's inputs and B's outputs, one mask a step")
    ensemble: Count = Field(1, description="LoRA Dropout: how many masks' outputs evaluation averages; 1: no mask")
    dora: bool = Field(False, description="DoRA: each output's column has a trained length")
    freeze_a: bool = Field(False, description="LoRA-FA: only B trains")
    share_a: Literal["none", "qkv", "gate_up", "all"] = Field("none", description="projections that have one A")
    per_head: bool = Field(False, description="q, k and v have an A for each head, and one B for all heads")
    bias: Literal["none", "all", "targets"] = data("none", description="biases that train too, as in PEFT")
    train: Text | None = data(None, description="other parameters that train in full, a target expression of paths")
    # The default is not {}, because Hydra could not add keys to it from the command line.
    rank_pattern: dict[Text, Count] | None = data(None)
    alpha_pattern: dict[Text, Annotated[PositiveReal, Field(ge=SMALLEST_ALPHA, le=LARGEST_ALPHA)]] | None = data(None)

    @field_validator("ensemble")
    @classmethod
    def _averages_factor_dropout_alone(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and not info.data.get("factor_dropout"):
            raise ValueError("must be 1 without method.factor_dropout, whose masks it averages over")
        if value > 1 and info.data.get("dropout"):
            raise ValueError("must be 1 with method.dropout, which is off in evaluation")
        return value

    @field_validator("share_a")
    @classmethod
    def _shares_a_random_a(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("init") in RESIDUAL_INITS:
            raise ValueError(f"must be none with method.init={info.data['init']}, which gives each kernel its own A")
        return value

    @field_validator("per_head")
    @classmethod
    def _has_a_plain_a_per_head(cls, value: bool, info: ValidationInfo) -> bool:
        given = {"init": info.data.get("init") in RESIDUAL_INITS, "share_a": info.data.get("share_a") != "none"}
        given |= {"dora": info.data.get("dora"), "freeze_a": info.data.get("freeze_a")}
        for other in (name for name, is_given in given.items() if value and is_given):
            raise ValueError(f"must be false with method.{other}, which is defined for one A and one B a kernel")
        return value

    @property
    def drops_out(self) -> bool:
        return self.dropout > 0 or self.factor_dropout > 0

    @property
    def has_residual(self) -> bool:
        """Whether the initial pair is not zero, so that the base loses it in return."""
        return self.init in RESIDUAL_INITS

    def static_settings(self) -> dict[str, Any]:
        """Returns the settings that runs must have in common to share a compiled program."""
        return {**super().static_settings(), "has_residual": self.has_residual}


class FullSettings(MethodSettings):
    """Full fine-tuning: every parameter of the base trains."""

    title: ClassVar[str] = "full fine-tuning"
    trains_base: ClassVar[bool] = True
    full_width: ClassVar[bool] = True

    name: Literal["full"]


class TopLayersSettings(MethodSettings):
    """FT-Top-k (arXiv 2106.09685, Table 3): the last layers train."""

    title: ClassVar[str] = "FT-Top"
    full_width: ClassVar[bool] = True

    name: Literal["top_layers"]
    layers: Count = data(2, description="how many layers train, counted from the last")


class LayerwiseSettings(MethodSettings):
    """Fine-tuning with a learning rate per layer (arXiv 1801.06146)."""

    title: ClassVar[str] = "layer-wise fine-tuning"
    full_width: ClassVar[bool] = True

    name: Literal["layerwise"]
    decay: Annotated[PositiveReal, Field(le=1)] = data(0.9, description="from each layer to the one below it")
    multipliers: Annotated[tuple[NonNegativeReal, ...], Field(min_length=1)] | None = data(
        None, description="of each layer's learning rate, the first layer first, in place of powers of decay; 0 freezes"
    )
    embeddings: NonNegativeReal | None = data(
        None, description="the multiplier of embeddings; null: one more power of decay"
    )

    def layer_multipliers(self, layers: int) -> tuple[float, ...]:
        """Returns the multiplier of each of `layers` layers, or those of the setting, however many they are."""
        return self.multipliers or tuple(self.decay ** (layers - i) for i in range(layers))

    def embedding_multiplier(self, layers: int) -> float:
        """Returns the multiplier of embeddings."""
        return self.decay ** (layers + 1) if self.embeddings is None else self.embeddings


class BitFitSettings(MethodSettings):
    """BitFit (arXiv 2106.10199): only biases train."""

    title: ClassVar[str] = "BitFit"
    reads: ClassVar[frozenset[str]] = frozenset({"targets"})

    name: Literal["bitfit"]
    norms: bool = data(True, description="whether the biases of layer norms train too")


Activation = Literal["relu", "gelu", "silu"]  # each maps 0 to 0, so the bottleneck can be padded


class BottleneckSettings(MethodSettings):
    """The settings that all bottleneck adapters have."""

    bottleneck: Count = data(64, description="the width between the two layers of an adapter")
    layers: Text = data(":", description="the layers that get adapters: a number, or a slice such as 6:")
    activation: Activation
    init: Literal["zero", "normal"] = data("zero", description="zero: W_up is 0; normal: both kernels are drawn")

    @property
    def first_layer(self) -> int:
        """The first layer that may get an adapter."""
        return 0


class AdapterHSettings(BottleneckSettings):
    """Adapters of Houlsby et al. (arXiv 1902.00751): after attention and after the MLP."""

    title: ClassVar[str] = "Adapter-H"

    name: Literal["adapter_h"]
    activation: Activation = "gelu"


class AdapterPSettings(BottleneckSettings):
    """Adapters of Pfeiffer et al. (arXiv 2005.00247): after the MLP, computed from the normed stream."""

    title: ClassVar[str] = "Adapter-P"

    name: Literal["adapter_p"]
    activation: Activation = "relu"


class AdapterLSettings(BottleneckSettings):
    """Adapters of Lin et al. (arXiv 2004.03829): on a block's result, with a layer norm."""

    title: ClassVar[str] = "Adapter-L"

    name: Literal["adapter_l"]
    activation: Activation = "relu"


class AdapterDSettings(BottleneckSettings):
    """AdapterDrop (arXiv 2010.11918): as adapter_p, without the first layers."""

    title: ClassVar[str] = "Adapter-D"

    name: Literal["adapter_d"]
    activation: Activation = "relu"
    drop: Whole = data(2, description="how many layers get no adapter, counted from the first")

    @property
    def first_layer(self) -> int:
        return self.drop


Added = Annotated[Count, Field(le=2**20)]
AddedOrNone = Annotated[Whole, Field(le=2**20)]


class PrefixSettings(MethodSettings):
    """Prefix-tuning (arXiv 2101.00190): trained keys and values before those of every text."""

    title: ClassVar[str] = "prefix-tuning"
    adds: ClassVar[tuple[str, ...]] = ("length",)

    name: Literal["prefix"]
    length: Added = data(16, description="how many keys and values each layer gets")
    layers: Text = data(":", description="the layers that get a prefix: a number, or a slice such as 6:")
    init_std: NonNegativeReal = data(0.02, description="the standard deviation of initial keys and values")


class VirtualTokenSettings(MethodSettings):
    """The settings that all methods with virtual tokens have."""

    trains_activations: ClassVar[bool] = False  # whether their activations between the layers train too

    init: Literal["vocabulary", "normal"] = data(
        "vocabulary", description="embeddings of random tokens, or normal numbers of their standard deviation"
    )

    @property
    def virtual_tokens(self) -> tuple[int, int]:
        """The number of virtual tokens before the text, and after its prompt."""
        raise NotImplementedError


class PromptSettings(VirtualTokenSettings):
    """Prompt tuning (arXiv 2104.08691): trained embeddings before those of every text."""

    title: ClassVar[str] = "prompt tuning"
    adds: ClassVar[tuple[str, ...]] = ("length",)

    name: Literal["prompt"]
    length: Added = data(16, description="how many virtual tokens there are")

    @property
    def virtual_tokens(self) -> tuple[int, int]:
        return self.length, 0


class PreEmbedSettings(VirtualTokenSettings):
    """PreEmbed (arXiv 2106.09685, section 5.1): trained embeddings before a text and after its prompt."""

    title: ClassVar[str] = "PreEmbed"
    adds: ClassVar[tuple[str, ...]] = ("prefix", "infix")

    name: Literal["preembed"]
    prefix: AddedOrNone = data(16, description="how many virtual tokens stand before a text")
    infix: AddedOrNone = data(0, description="how many stand after its prompt, or after a text to classify")

    @pydantic.model_validator(mode="after")
    def _adds_a_token(self) -> Self:
        if not self.added_tokens:
            raise ValueError("prefix=0 and infix=0: one of them must be above 0")
        return self

    @property
    def virtual_tokens(self) -> tuple[int, int]:
        return self.prefix, self.infix


class PreLayerSettings(PreEmbedSettings):
    """PreLayer (arXiv 2106.09685, section 5.1): PreEmbed, with trained activations between the layers too."""

    title: ClassVar[str] = "PreLayer"
    trains_activations: ClassVar[bool] = True

    name: Literal["prelayer"]  # type: ignore[assignment]  # a name of its own


class VeraSettings(MethodSettings):
    """VeRA (arXiv 2310.11454): vectors that scale shared random matrices."""

    title: ClassVar[str] = "VeRA"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "targets"})

    name: Literal["vera"]
    d_initial: PositiveReal = data(0.1, description="where the vector over the ranks starts")
    projection_seed: Whole = data(0, description="of the random matrices")


class MissSettings(MethodSettings):
    """MiSS (arXiv 2409.15371): a matrix that multiplies the sum of the input's shards."""

    title: ClassVar[str] = "MiSS"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "targets"})

    name: Literal["miss"]


METHOD_SETTINGS = Annotated[
    LoraSettings
    | FullSettings
    | TopLayersSettings
    | LayerwiseSettings
    | BitFitSettings
    | AdapterHSettings
    | AdapterPSettings
    | AdapterLSettings
    | AdapterDSettings
    | VeraSettings
    | MissSettings
    | PrefixSettings
    | PromptSettings
    | PreEmbedSettings
    | PreLayerSettings,
    Field(discriminator="name"),
]
