"""Cases of the step bench, of lora_jax or of PEFT, and the stages in which they are measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from lora_jax.bench.shapes import SHAPES
from lora_jax.config.settings import Settings
from lora_jax.errors import UserError


def _check_shape(shape: str) -> str:
    if shape not in SHAPES:
        raise ValueError(f"must be one of {', '.join(SHAPES)}")
    return shape


class _Case(Settings):
    """Settings of both sides: a model's step on `batch` texts of `tokens` random tokens per run."""

    shape: Annotated[str, pydantic.AfterValidator(_check_shape)] = "smollm2_135m"
    method: Literal["lora", "full"] = "lora"
    batch: PositiveInt = 8
    tokens: PositiveInt = 512
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    runs: PositiveInt = 1
    ranks: tuple[PositiveInt, ...] = Field((16,), description="of the runs, in turn")
    steps: PositiveInt = Field(200, description="of a sweep")
    scored: PositiveInt = Field(64, description="texts that a sweep scores for each run")


class LoraJaxCase(_Case):
    """A pack of lora_jax.

    `measure`: ``step`` times steps. ``compile`` compiles the step and reports XLA's plan of memory. ``sweep`` times a
    process that trains `steps` steps and scores `scored` texts per run, with imports, initialisation and compilation;
    it needs its own stage.
    """

    side: Literal["ours"] = "ours"
    measure: Literal["step", "compile", "sweep"] = "step"
    cache: str = Field("", description="a sweep's folder of compiled programs; by default it has none")
    base_storage: Literal["auto", "bf16", "f32", "int8", "nf4"] = "auto"
    unroll: PositiveInt = 1
    remat: Literal["none", "dots", "layer"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    kernel: Literal["auto", "pallas", "xla"] = "auto"
    gemm: Literal["default", "triton", "cublas"] = "default"
    xla_flags: str = Field("", description="added to XLA_FLAGS of the case's process")


class PeftCase(_Case):
    """A model of transformers with PEFT's LoRA, or fully fine-tuned with its embeddings.

    A step is that of one run. A sweep trains and scores its runs one after another in one process.
    """

    side: Literal["peft"] = "peft"
    measure: Literal["step", "sweep"] = "step"
    mode: Literal["eager", "compile"] = "eager"
    factors: Literal["same", "float32"] = Field(
        "same", description="LoRA's own dtype: the model's, which is faster; or float32 under autocast, PEFT's default"
    )
    checkpointing: bool = False


Case = Annotated[LoraJaxCase | PeftCase, Field(discriminator="side")]
_CASE: pydantic.TypeAdapter[LoraJaxCase | PeftCase] = pydantic.TypeAdapter(Case)


def parse_case(settings: Mapping[str, Any]) -> LoraJaxCase | PeftCase:
    """Parses a case. The default of ``side`` is ``ours``, lora_jax.

    Raises:
      UserError: a setting does not exist or has an invalid value.
    """
    if "base" in settings:
        raise UserError(f"case {dict(settings)}: base={settings['base']!r}: this setting is now base_storage")
    try:
        return _CASE.validate_python({"side": "ours", **settings})
    except pydantic.ValidationError as error:
        errors = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"case {dict(settings)}: {errors}") from None


def case_to_json(case: LoraJaxCase | PeftCase) -> dict[str, Any]:
    """Returns a case as JSON, as in the rows of results. `parse_case` is the inverse."""
    return case.model_dump(mode="json")


def parse_typed(texts: Sequence[str]) -> list[list[LoraJaxCase | PeftCase]]:
    """Parses the cases of a command line, each ``"runs=4 batch=1 ranks=[4,8]"``. They form one stage."""
    from omegaconf import OmegaConf

    return _check_stages([[parse_case(_plain(OmegaConf.from_dotlist(text.split()))) for text in texts]])


def read_plan(path: Path) -> list[list[LoraJaxCase | PeftCase]]:
    """Reads the stages of a YAML file. Its key ``stages`` has a list of lists of cases."""
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(f"--plan {path}: no such file")
    return _check_stages([[parse_case(case) for case in stage] for stage in _plain(OmegaConf.load(path))["stages"]])


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def _check_stages(stages: list[list[LoraJaxCase | PeftCase]]) -> list[list[LoraJaxCase | PeftCase]]:
    """Returns `stages`. Raises UserError if a case with measure=sweep shares its stage."""
    for stage in stages:
        if len(stage) > 1 and any(case.measure == "sweep" for case in stage):
            raise UserError(
                "measure=sweep: the time includes the start of the process, so the case needs a stage of its own"
            )
    return stages
