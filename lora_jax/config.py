"""What a run is made of: every setting typed, every bad value refused before anything is loaded or compiled.

Hydra composes a plain mapping from ``conf/`` and the command line; :func:`parse` turns it into a :class:`RunConfig`.
Each field is either *data* (marked so below: it becomes an array, so runs that differ in it share one compiled
program) or *shape* (everything else: runs that differ in it are compiled apart).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lora_jax.errors import UserError

DATA: dict[str, Any] = {"data": True}
Fraction = Annotated[float, Field(ge=0, lt=1)]
QUANTISED = ("int8", "nf4")  # the values of `base` that leave too few bits to train


def _multiple_of_rank(value: float | str) -> float | str:
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(\.\d+)?r", value) or not float(value[:-1]) > 0:
            raise ValueError("must be a number, or a multiple of the rank such as '2r'")
        return value
    if not value > 0:
        raise ValueError("must be above 0")
    return value


Alpha = Annotated[float | str, AfterValidator(_multiple_of_rank)]


class Settings(pydantic.BaseModel):
    """Frozen, and strict about names: an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Settings):
    """Where the frozen base comes from and how it is run."""

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
    """How test texts are written: greedily, or by beam search."""

    new_tokens: PositiveInt = Field(description="most tokens of a text")
    beams: PositiveInt = 1
    length_penalty: float = Field(1.0, description="beam search divides by a text's length to this power")
    no_repeat_ngram: NonNegativeInt = Field(0, description="no so many tokens come twice; 0 allows all")


class TaskConfig(Settings):
    """The data, and how long its texts may be."""

    name: str
    data_dir: str | None = Field(None, description="a folder with the raw files, in place of the ones at hand")
    buckets: tuple[PositiveInt, ...] = Field(description="padded lengths in tokens; the longest truncates")
    steps: PositiveInt = Field(description="how long to train when neither steps nor epochs is given")
    eval_examples: PositiveInt | None = Field(None, description="most examples to validate and to test on; null: all")
    decode: DecodeConfig | None = Field(None, description="how test texts are written, where the task is to write")


class LoraConfig(Settings):
    """LoRA (arXiv 2106.09685). rank, alpha and targets stand at the top level."""

    name: Literal["lora"]
    lr: PositiveFloat
    scaling: Literal["lora", "rslora", "constant"] = Field("lora", json_schema_extra=DATA)
    init: Literal["uniform", "gaussian"] = Field("uniform", json_schema_extra=DATA)
    dropout: Fraction = Field(0.0, json_schema_extra=DATA)
    # None and not {}, which Hydra would not let a command line fill.
    rank_pattern: dict[str, PositiveInt] | None = Field(None, json_schema_extra=DATA)
    alpha_pattern: dict[str, PositiveFloat] | None = Field(None, json_schema_extra=DATA)


class FullConfig(Settings):
    """Full fine-tuning: every parameter of the base trains."""

    name: Literal["full"]
    lr: PositiveFloat


class OptimConfig(Settings):
    """The optimizer, its schedule and clipping."""

    name: Literal["adamw", "sgd", "lion", "adafactor"]
    b1: Fraction = Field(0.9, json_schema_extra=DATA)
    b2: Fraction = Field(0.999, json_schema_extra=DATA)
    eps: PositiveFloat = Field(1e-8, json_schema_extra=DATA)
    weight_decay: NonNegativeFloat = Field(0.0, json_schema_extra=DATA)
    clip_norm: PositiveFloat = Field(1.0, json_schema_extra=DATA, description="largest global norm of the gradient")
    warmup: Fraction = Field(0.06, json_schema_extra=DATA, description="share of the steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"


class WandbConfig(Settings):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lora_jax"


class RunConfig(Settings):
    """One point of a sweep."""

    model: ModelConfig
    task: TaskConfig
    method: Annotated[LoraConfig | FullConfig, Field(discriminator="name")]
    optim: OptimConfig
    wandb: WandbConfig = WandbConfig()

    rank: PositiveInt = Field(8, json_schema_extra=DATA)
    alpha: Alpha = Field(16, json_schema_extra=DATA, description="a number, or a multiple of the rank such as 2r")
    targets: str = Field("all", json_schema_extra=DATA, min_length=1)
    lr: PositiveFloat = Field(json_schema_extra=DATA)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, json_schema_extra=DATA)
    steps: PositiveInt | None = Field(None, json_schema_extra=DATA)
    epochs: PositiveFloat | None = Field(None, json_schema_extra=DATA)
    dropout: Fraction = Field(0.0, json_schema_extra=DATA, description="inside the base, while training")

    batch: PositiveInt = 32
    eval_batch: PositiveInt = 128
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    base: Literal["auto", "f32", "bf16", "int8", "nf4"] = Field(
        "auto", description="how the frozen base is stored on the device; auto: as dtype, in which it is computed"
    )
    eval_every: PositiveInt | Literal["epoch"] = "epoch"
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100
    stop: Literal["none", "median"] = Field(
        "none",
        json_schema_extra=DATA,
        description="when a run that falls behind its pack is ended (lora_jax/stopping.py)",
    )

    baseline: Literal["full", "none"] = Field("full", description="what a sweep is compared with", exclude=True)
    resume: str | None = Field(None, description="the folder of a sweep or run to go on with", exclude=True)
    pack: PositiveInt | Literal["auto"] = Field("auto", description="most runs in one program", exclude=True)

    @pydantic.model_validator(mode="after")
    def _one_length(self):
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _full_width_trains(self):
        if self.method.name == "full" and self.base in QUANTISED:
            raise ValueError(
                f"base={self.base!r}: must be auto, f32 or bf16 with method=full, which trains every weight of it"
            )
        return self

    def steps_of(self, steps_per_epoch: int) -> int:
        """Optimizer steps of this run, given how many the task's train split makes an epoch of."""
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        return self.steps or self.task.steps

    def alpha_of(self, rank: int) -> float:
        """α in numbers: '2r' is twice `rank`."""
        return float(self.alpha[:-1]) * rank if isinstance(self.alpha, str) else float(self.alpha)

    def shape(self) -> dict[str, Any]:
        """The settings that runs must have in common to share a compiled program."""
        return {**_shape(self), "dropping": self.dropout > 0 or getattr(self.method, "dropout", 0) > 0}


def parse(settings: Mapping[str, Any]) -> RunConfig:
    """A validated RunConfig from a mapping, as Hydra composes it.

    Raises UserError naming each bad key, its value, and what would be accepted.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        # Where several kinds of value would do, there is an error for each.
        explained: dict[str, dict[str, None]] = {}
        for start, message in map(_explain, error.errors()):
            explained.setdefault(start, {})[message] = None
        raise UserError("\n".join(start + " or ".join(messages) for start, messages in explained.items())) from None


# What pydantic puts into a location and nobody typed: the kind of value that it tried.
_TRIED = re.compile(r"(constrained-)?(int|float|str|dict)(\[.*\])?|literal\[.*\]|function-\w+\[.*\]|none")


def _explain(item) -> tuple[str, str]:
    # A discriminated union puts the tag ("lora") into the location; the user typed method.rank_pattern, no tag.
    parts = [part for i, part in enumerate(item["loc"]) if not (i == 1 and item["loc"][0] == "method")]
    key = ".".join(str(part) for part in parts if not _TRIED.fullmatch(str(part)))
    if item["type"] == "extra_forbidden":
        return f"unknown setting {key}={item['input']!r}", ""
    if item["type"] == "missing":
        return f"{key} is missing", ""
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("must be ")
    return (f"{key}={item['input']!r}: must be ", message) if key else ("", message)


def _shape(settings: Settings) -> dict[str, Any]:
    kept = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.json_schema_extra != DATA and not field.exclude and not isinstance(value, WandbConfig):
            kept[name] = _shape(value) if isinstance(value, Settings) else value
    kept.pop("lr", None)  # a method's default rate: the run's own stands at the top level
    return kept
