"""Whatever the bytes of a model's or an adapter's files, they load or a UserError refuses them, in little memory.

``LORA_JAX_FUZZ_EXAMPLES=20000 python -m pytest -m slow tests/faults`` searches for longer.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import tracemalloc
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import Tokenizer
from weights import test_adapters, test_gguf, test_load

from lora_jax.errors import UserError
from lora_jax.records.sealed import seal
from lora_jax.weights import load
from lora_jax.weights.adapters import load_adapter, save_adapter
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.preprocessing import read_preprocessing
from lora_jax.weights.special import read_special

MOST_BYTES = 2**24  # that a tiny file may make Python allocate
PROFILE = {
    "deadline": timedelta(seconds=1),
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ABSURD = st.sampled_from([-1, 0, 1, 10**9, 2**63, 10**40, 1.5, float("nan"), True, None, "two", [], {}, "../x", [[]]])


def load_folder(folder: Path) -> None:
    load.load_base(str(folder), "bert", labels=2)


def read_special_tokens(folder: Path) -> None:
    read_special(folder, Tokenizer.from_file(str(folder / "tokenizer.json")), test_load.CONFIG.vocab_size)


def load_gguf(folder: Path) -> None:
    open_gguf.cache_clear()
    load.load_base(str(folder), "llama", head="causal")


def load_adapter_folder(folder: Path) -> None:
    load_adapter(folder, base_fingerprint=None)


@functools.cache
def valid(kind: str) -> Path:
    """Returns a folder with valid files."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    if kind == "gguf":
        test_gguf.write(folder / "model.gguf")
    elif kind == "adapter":
        save_adapter(folder, *test_adapters.make_adapter(), config={"rank": 4}, **test_adapters.BASE)
    elif kind in ("adapter-1", "adapter-2"):
        _old_adapter(folder, int(kind[-1]))
    else:
        test_load.write(folder)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "one", "chat_template": "{{ messages }}"})
        )
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [1, 2]}))
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 8, "width": 8}, "resample": 2}))
        if kind == "shards":
            (folder / "model.safetensors").rename(folder / "a.safetensors")
            names = test_load.tensors_of(load.random(test_load.abstract(), 0))
            index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _old_adapter(folder: Path, version: int) -> None:
    pair = {"a": np.ones((3, 8, 2), np.float32), "b": np.ones((3, 2, 8), np.float32)}
    path, prefix = ("q/lora", "") if version == 1 else ("q/adapter", "params/")
    tensors = save({f"{prefix}{path}/{field}": array for field, array in pair.items()})
    described = {
        1: {"delta": {path: ["a", "b"]}, "scale": {path: [4.0, 0.0, 4.0]}},
        2: {"params": {path: {"kind": "low_rank", "fields": ["a", "b"]}}, "constants": {}},
    }
    head = {"format": version, "base": {"source": "x", "fingerprint": "y"}, "config": {}}
    (folder / "delta.safetensors").write_bytes(tensors)
    (folder / "adapter.json").write_text(
        json.dumps(head | described[version] | {"sha256": hashlib.sha256(tensors).hexdigest()})
    )


# The kind of folder, the file that is changed, and what reads it.
FILES = {
    "config": ("folder", "config.json", load_folder),
    "tokenizer": ("folder", "tokenizer.json", load_folder),
    "tokenizer_config": ("folder", "tokenizer_config.json", read_special_tokens),
    "generation_config": ("folder", "generation_config.json", read_special_tokens),
    "preprocessor_config": ("folder", "preprocessor_config.json", read_preprocessing),
    "index": ("shards", "model.safetensors.index.json", load_folder),
    "safetensors": ("folder", "model.safetensors", load_folder),
    "gguf": ("gguf", "model.gguf", load_gguf),
    "adapter": ("adapter", "adapter.json", load_adapter_folder),
    "adapter-1": ("adapter-1", "adapter.json", load_adapter_folder),
    "adapter-2": ("adapter-2", "adapter.json", load_adapter_folder),
    "adapter-tensors": ("adapter", "delta.safetensors", load_adapter_folder),
}


@st.composite
def damaged(draw, content: bytes):
    """Draws `content` cut off, with some bytes changed near its beginning or anywhere, or other bytes altogether."""
    match draw(st.sampled_from(["cut", "flip", "number", "replace", "random"])):
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "random":
            return draw(st.binary(max_size=200))
        case "number":  # a length or a count
            at = draw(st.integers(0, min(len(content), 2000) - 8))
            return (
                content[:at]
                + draw(st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1])).to_bytes(8, "little")
                + content[at + 8 :]
            )
        case "replace":
            at = draw(st.integers(0, len(content)))
            return content[:at] + draw(st.binary(max_size=9)) + content[at + draw(st.integers(0, 9)) :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, min(len(content), 3000) - 1) | st.integers(0, len(content) - 1))] = draw(
            st.integers(0, 255)
        )
    return bytes(changed)


@st.composite
def edited(draw, content: bytes):
    """Draws a JSON object with a value somewhere in it replaced, removed or added."""
    values = json.loads(content)
    place = values
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and draw(st.integers(0, 5)) == 0:
            del place[key]
        else:
            place[key] = draw(ABSURD | JSON)
        break
    return json.dumps(values).encode()


def contents(case: str) -> st.SearchStrategy[bytes]:
    kind, name, _ = FILES[case]
    content = (valid(kind) / name).read_bytes()
    bytewise = damaged(content)
    if case == "adapter":  # with a new hash, so that more than the hash is checked
        return edited(content).map(lambda text: json.dumps(seal(json.loads(text))).encode()) | bytewise
    if name.endswith(".json"):
        return edited(content) | JSON.map(lambda value: json.dumps(value).encode()) | bytewise
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")

        def with_header(header: bytes) -> bytes:
            return len(header).to_bytes(8, "little") + header + content[8 + length :]

        return edited(content[8 : 8 + length]).map(with_header) | bytewise
    return bytewise


def check(case: str, content: bytes) -> None:
    kind, name, read = FILES[case]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "x")
        folder.mkdir()
        for file in valid(kind).iterdir():
            shutil.copy(file, folder)
        (folder / name).write_bytes(content)
        if case != "preprocessor_config" and kind == "folder":
            (folder / "preprocessor_config.json").unlink()
        tracemalloc.start()
        try:
            with contextlib.suppress(UserError):
                read(folder)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < MOST_BYTES, f"{peak} bytes"


def fuzz(case: str, examples: int) -> None:
    check(case, (valid(FILES[case][0]) / FILES[case][1]).read_bytes())  # compiles what the deadline should not count

    @settings(max_examples=examples, **PROFILE)
    @given(contents(case))
    def loads_or_is_refused(content):
        check(case, content)

    loads_or_is_refused()


@pytest.mark.parametrize("case", FILES)
def test_files_load_or_are_refused(case):
    fuzz(case, 30)


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_many_files_load_or_are_refused(case):
    fuzz(case, int(os.environ.get("LORA_JAX_FUZZ_EXAMPLES", "150")))
