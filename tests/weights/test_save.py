"""lora_jax.weights.save: saving and loading a model preserves it bit for bit."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import TINY, heads, tiny
from safetensors.numpy import load_file
from weights.test_gguf import write as write_gguf

from lora_jax.adapters import LowRank, Replacement
from lora_jax.delta import graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES
from lora_jax.weights.load import load_base
from lora_jax.weights.save import save_pretrained


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "head"), [(name, head) for name in TINY for head in heads(name)])
def test_save_and_load_preserve_every_bit(name, head, dtype, tmp_path):
    base, kind = tiny(name, head, dtype=dtype), TINY[name][0]
    save_pretrained(tmp_path / "model", base)
    pool = "last" if FAMILIES[kind].causal else "first"
    loaded = load_base(str(tmp_path / "model"), kind, head=head, labels=5, pool=pool, dtype=dtype)
    before, after = parameters(base.model), parameters(loaded.model)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if not path.startswith("head/"):  # new heads are zero
            assert after[path].dtype == leaf.dtype
            np.testing.assert_array_equal(np.asarray(after[path]), np.asarray(leaf), err_msg=path)
    assert loaded.model.backbone.config == base.model.backbone.config
    assert loaded.special == base.special and loaded.parameters == base.parameters
    if kind == "vit":
        assert loaded.tokenizer == base.tokenizer
    else:
        assert loaded.tokenizer.encode("w3 w60 what").ids == [3, 60, 0]

    head_parameters = {path: Replacement(leaf) for path, leaf in before.items() if path.startswith("head/")}
    save_pretrained(tmp_path / "again", loaded, graft(loaded.model, head_parameters))
    for file in (tmp_path / "model").iterdir():
        twin = tmp_path / "again" / file.name
        if file.suffix == ".json":
            assert json.loads(twin.read_text()) == json.loads(file.read_text())
        else:
            assert twin.read_bytes() == file.read_bytes()


def test_a_large_checkpoint_has_shards_and_an_index(tmp_path):
    base = tiny("llama", "causal")
    save_pretrained(tmp_path / "single", base)
    save_pretrained(tmp_path / "shards", base, largest_shard=20_000)
    single = load_file(tmp_path / "single" / "model.safetensors")
    files = sorted(file.name for file in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    shards = {file: load_file(tmp_path / "shards" / file) for file in files}
    assert all(sum(t.nbytes for t in shard.values()) <= 20_000 for shard in shards.values())
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in single.values())
    loaded = load_base(str(tmp_path / "shards"), "llama", head="causal")
    assert loaded.fingerprint == base.fingerprint


def test_a_backbone_is_saved_without_its_head(tmp_path):
    base = tiny("bert", "classifier")
    base = dataclasses.replace(base, config={**base.config, "dtype": "bfloat16", "architectures": ["BertForMaskedLM"]})
    save_pretrained(tmp_path / "model", base, base.model.backbone)
    loaded = load_base(str(tmp_path / "model"), "bert", head="embedding")
    backbone = parameters(base.model.backbone)
    for path, leaf in parameters(loaded.model.backbone).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(backbone[path]))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["architectures"], config["torch_dtype"], "dtype" in config) == (["BertModel"], "float32", False)


def test_a_gguf_is_saved_as_a_folder(tmp_path):
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "model.gguf", "Q8_0")
    base = load_base(str(tmp_path / "gguf"), "llama", head="causal")
    save_pretrained(tmp_path / "model", base)
    loaded = load_base(str(tmp_path / "model"), "llama", head="causal")
    assert loaded.fingerprint == base.fingerprint and loaded.special == base.special
    assert loaded.model.backbone.config == base.model.backbone.config
    assert loaded.tokenizer.encode("ab 12<|end|>b").ids == base.tokenizer.encode("ab 12<|end|>b").ids

    factors = np.linspace(1, 8, 8, dtype=np.float32)
    (tmp_path / "factors").mkdir()
    write_gguf(tmp_path / "factors" / "model.gguf", extra={"rope_freqs.weight": factors})
    with pytest.raises(UserError, match="has rotary frequencies"):
        save_pretrained(tmp_path / "none", load_base(str(tmp_path / "factors"), "llama", head="causal"))


def test_a_quantised_base_is_written_at_full_width(tmp_path):
    save_pretrained(tmp_path / "model", tiny("llama", "causal"))
    quantised = load_base(str(tmp_path / "model"), "llama", head="causal", base_storage="int8")
    save_pretrained(tmp_path / "dequantised", quantised)
    loaded = parameters(load_base(str(tmp_path / "dequantised"), "llama", head="causal").model)
    for path, leaf in parameters(quantised.model).items():
        np.testing.assert_array_equal(np.asarray(loaded[path]), np.asarray(leaf.astype(leaf.dtype)))


def test_save_overwrites_nothing_and_leaves_nothing_incomplete(tmp_path, monkeypatch):
    base = tiny("bert", "masked")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for taken in ("thesis", "file"):
        with pytest.raises(UserError, match="is not empty"):
            save_pretrained(tmp_path / taken, base)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_pretrained(tmp_path / "empty", base)
    assert (tmp_path / "empty" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "thesis"]

    monkeypatch.setattr("lora_jax.weights.save._write_reader", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(tmp_path / "broken", base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "thesis"]


def test_models_without_a_class_in_transformers_are_refused(tmp_path):
    mean = tiny("bert", "classifier")
    mean.model.pool = "mean"
    with pytest.raises(UserError, match=r"pool='mean': bert in transformers has pool='first'.*model\.backbone"):
        save_pretrained(tmp_path / "model", mean)
    biased = tiny("llama", "classifier")
    model = graft(biased.model, {"head/bias": Replacement(jnp.ones(5))})
    with pytest.raises(UserError, match=r"the head has a bias, and the head of llama in transformers has none"):
        save_pretrained(tmp_path / "model", biased, model)
    base = tiny("llama", "causal")
    pair = LowRank(jnp.ones((2, 36, 3)), jnp.ones((2, 3, 48)))
    delta = {"backbone/layers/attn/q/adapter": pair}
    with pytest.raises(UserError, match=r"an unmerged delta, at backbone/layers/attn/q/adapter"):
        save_pretrained(tmp_path / "model", base, graft(base.model, delta))
    save_pretrained(tmp_path / "model", base, merge(base.model, delta))
    kernel = load_file(tmp_path / "model" / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(kernel.T, np.asarray(base.model.backbone.layers.attn.q.kernel[...])[1] + 3, rtol=1e-6)
