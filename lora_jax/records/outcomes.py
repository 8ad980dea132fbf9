"""outcomes.npz: what a run answered to every test example, so that runs can be compared example by example."""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lora_jax.errors import UserError, message_of
from lora_jax.records.atomic import write_atomically

OUTCOMES_FILE = "outcomes.npz"
_VERSION = 1
_PER_EXAMPLE = "per_example/"  # before a metric's name in the archive
_LARGEST = 2**28  # bytes, unpacked: 67 million numbers
_DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a run answered to the test examples, in their order. Runs are paired only if their fingerprints agree.

    Attributes:
      fingerprint: SHA-256, in hex, of the test examples' texts and labels, in order.
      examples: the number of test examples.
      per_example: by metric, the values whose mean the metric is: bool for 0/1, else float32.
      labels: the true classes (int32) or values (float32), for metrics that are no such means; None if there is none.
      predicted: the predicted classes or values. The class `classes` is that of an example that was given none.
      classes: the number of classes; None for values.

    Raises:
      ValueError: an array has another type, or not one entry for each example, or a class is out of range.
    """

    fingerprint: str
    examples: int
    per_example: Mapping[str, Shaped[np.ndarray, " examples"]]
    labels: Shaped[np.ndarray, " examples"] | None = None
    predicted: Shaped[np.ndarray, " examples"] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise ValueError(f"fingerprint={self.fingerprint!r}: must be 64 hexadecimal digits")
        for name, values in self.per_example.items():
            self._check(name, values, (np.dtype(bool), np.dtype(np.float32)))
        if (self.labels is None) != (self.predicted is None):
            raise ValueError("labels and predicted: there must be both, or neither")
        kind = np.dtype(np.float32 if self.classes is None else np.int32)
        for name, answers, beyond in (("labels", self.labels, 0), ("predicted", self.predicted, 1)):
            if answers is not None:
                self._check(name, answers, (kind,))
                if self.classes is not None and not ((answers >= 0) & (answers < self.classes + beyond)).all():
                    raise ValueError(f"{name}: a class is not among the {self.classes} classes")

    def _check(self, name: str, values: Shaped[np.ndarray, "..."], kinds: tuple[np.dtype, ...]) -> None:
        if values.dtype not in kinds or values.shape != (self.examples,):
            raise ValueError(
                f"{name} is {values.dtype} of shape {values.shape}; expected {' or '.join(map(str, kinds))} of shape "
                f"({self.examples},)"
            )


def write_outcomes(folder: Path, outcomes: Outcomes) -> None:
    """Writes ``folder/outcomes.npz``, compressed, with eight 0/1 outcomes to a byte."""
    arrays: dict[str, Any] = {
        "version": np.int64(_VERSION),
        "examples": np.int64(outcomes.examples),
        "fingerprint": np.frombuffer(bytes.fromhex(outcomes.fingerprint), np.uint8),
    }
    for name, values in outcomes.per_example.items():
        arrays[_PER_EXAMPLE + name] = np.packbits(values) if values.dtype == bool else values
    if outcomes.labels is not None and outcomes.predicted is not None:
        arrays |= {"labels": outcomes.labels, "predicted": outcomes.predicted}
    if outcomes.classes is not None:
        arrays["classes"] = np.int64(outcomes.classes)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(Path(folder) / OUTCOMES_FILE, content.getvalue())


def read_outcomes(folder: Path) -> Outcomes | None:
    """Returns ``folder/outcomes.npz``, or None if there is no such file. Nothing in the file is executed.

    Raises:
      UserError: the file cannot be read, is damaged, or is of a newer version.
    """
    path = Path(folder) / OUTCOMES_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        arrays = _unpacked(content)
        if (version := int(arrays["version"])) != _VERSION:
            raise UserError(f"{path}: version is {version}; this version of lora_jax reads version {_VERSION}")
        return _parsed(arrays)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: {message_of(error)}; restore it from a copy, or remove it") from None


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > _LARGEST:
            raise ValueError(f"it unpacks to {size} bytes, and at most {_LARGEST} are read")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _parsed(arrays: Mapping[str, np.ndarray]) -> Outcomes:
    examples = int(arrays["examples"])
    per_example = {}
    for name, values in arrays.items():
        if name.startswith(_PER_EXAMPLE):
            packed = values.dtype == np.uint8
            if packed and values.shape != (-(-examples // 8),):
                raise ValueError(f"{name} has the shape {values.shape}, for {examples} examples")
            outcomes = np.unpackbits(values, count=examples).astype(bool) if packed else values
            per_example[name.removeprefix(_PER_EXAMPLE)] = outcomes
    return Outcomes(
        fingerprint=arrays["fingerprint"].tobytes().hex(),
        examples=examples,
        per_example=per_example,
        labels=arrays.get("labels"),
        predicted=arrays.get("predicted"),
        classes=int(arrays["classes"]) if "classes" in arrays else None,
    )
