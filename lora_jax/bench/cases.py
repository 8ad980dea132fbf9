"""What a step bench measures: cases, on our side or PEFT's, and the stages that they are measured in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from lora_jax.bench.shapes import SHAPES
from lora_jax.config.settings import Settings
from lora_jax.errors import UserError


def _known(shape: str) -> str:
    if shape not in SHAPES:
        raise ValueError(f"must be one of {', '.join(SHAPES)}")
    return shape


class _Case(Settings):
    """A model's step, on `batch` texts of `tokens` random tokens for every run."""

    shape: Annotated[str, pydantic.AfterValidator(_known)] = "smollm2_135m"
    method: Literal["lora", "full"] = "lora"
    batch: PositiveInt = 8
    tokens: PositiveInt = 512
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class Ours(_Case):
    """One of our packs.

    `measure`: ``step`` times steps; ``compile`` stops at the compiled program and its plan of memory; ``sweep`` is a
    whole process that trains `steps` steps, imports, start and compilation included, and has a stage to itself.
    """

    side: Literal["ours"] = "ours"
    measure: Literal["step", "compile", "sweep"] = "step"
    steps: PositiveInt = Field(200, description="of a sweep")
    runs: PositiveInt = 1
    ranks: tuple[PositiveInt, ...] = Field((16,), description="of the runs, in turn")
    base: Literal["auto", "bf16", "f32", "int8", "nf4"] = "auto"
    unroll: PositiveInt = 1
    remat: Literal["none", "dots", "layer"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    xla_flags: str = Field("", description="put into XLA_FLAGS of the case's process")


class Peft(_Case):
    """One model of transformers, under PEFT's LoRA or fully fine-tuned, its embeddings too."""

    side: Literal["peft"] = "peft"
    rank: PositiveInt = 16
    mode: Literal["eager", "compile"] = "eager"
    factors: Literal["same", "float32"] = Field(
        "same", description="LoRA's own dtype: the model's, which is faster; or float32 under autocast, PEFT's default"
    )
    checkpointing: bool = False


Case = Annotated[Ours | Peft, Field(discriminator="side")]
_CASE: pydantic.TypeAdapter[Ours | Peft] = pydantic.TypeAdapter(Case)


def parse_case(settings: Mapping[str, Any]) -> Ours | Peft:
    """A case from a mapping; without `side`, ours. Raises UserError for what is not a setting of it."""
    try:
        return _CASE.validate_python({"side": "ours", **settings})
    except pydantic.ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"case {dict(settings)}: {told}") from None


def described(case: Ours | Peft) -> dict[str, Any]:
    """A case as its row has it; `parse_case` reads it."""
    return case.model_dump(mode="json")


def parse_typed(texts: Sequence[str]) -> list[list[Ours | Peft]]:
    """One stage of the cases that were typed, each ``"runs=4 batch=1 ranks=[4,8]"``."""
    from omegaconf import OmegaConf

    return _checked([[parse_case(_plain(OmegaConf.from_dotlist(text.split()))) for text in texts]])


def read_plan(path: Path) -> list[list[Ours | Peft]]:
    """The stages of a YAML file: under ``stages``, a list of lists of cases."""
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(f"--plan {path}: there is no such file")
    return _checked([[parse_case(case) for case in stage] for stage in _plain(OmegaConf.load(path))["stages"]])


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def _checked(stages: list[list[Ours | Peft]]) -> list[list[Ours | Peft]]:
    for stage in stages:
        if len(stage) > 1 and any(isinstance(case, Ours) and case.measure == "sweep" for case in stage):
            raise UserError("a case with measure=sweep is timed from its process's start: give it a stage of its own")
    return stages
