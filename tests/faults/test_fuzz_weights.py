"""Whatever the bytes of a model's or an adapter's files, they load or a UserError refuses them, in little memory."""

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from faults.fuzzing import EXAMPLES, changed, changed_json, damaged, fuzzed, works_or_is_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import Tokenizer
from weights import test_adapters, test_gguf, test_load

from lora_jax.records.sealed import seal
from lora_jax.weights import load
from lora_jax.weights.adapters import load_adapter, save_adapter
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.preprocessing import read_preprocessing
from lora_jax.weights.special import read_special


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


def content_of(case: str) -> bytes:
    kind, name, _ = FILES[case]
    return (valid(kind) / name).read_bytes()


def damaged_content(case: str) -> st.SearchStrategy[bytes]:
    name, content = FILES[case][1], content_of(case)
    if case == "adapter":  # with a new hash, so that more than the hash is checked
        return changed(json.loads(content)).map(lambda tree: json.dumps(seal(tree)).encode()) | damaged(content)
    if name.endswith(".json"):
        return changed_json(content) | damaged(content)
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")

        def with_header(header: bytes) -> bytes:
            return len(header).to_bytes(8, "little") + header + content[8 + length :]

        return changed_json(content[8 : 8 + length]).map(with_header) | damaged(content)
    return damaged(content)


def check(case: str, content: bytes) -> None:
    """Reads a folder whose file has `content`."""
    kind, name, read = FILES[case]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "x")
        shutil.copytree(valid(kind), folder)
        (folder / name).write_bytes(content)
        if case != "preprocessor_config" and kind == "folder":
            (folder / "preprocessor_config.json").unlink()
        works_or_is_refused(read, folder)


def fuzz(case: str, examples: int) -> None:
    check(case, content_of(case))  # compiles what the deadline should not count

    @settings(fuzzed, max_examples=examples)
    @given(damaged_content(case))
    def loads_or_is_refused(content):
        check(case, content)

    loads_or_is_refused()


@pytest.mark.parametrize("case", FILES)
def test_files_load_or_are_refused(case):
    fuzz(case, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_many_files_load_or_are_refused(case):
    fuzz(case, 5 * EXAMPLES)
