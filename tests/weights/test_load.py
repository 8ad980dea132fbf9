"""lora_jax.weights.load: a checkpoint into a module, all of it or an error."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from lora_jax.adapters import Replacement
from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.weights import load
from lora_jax.weights.fingerprint import fingerprint

CONFIG = bert.BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
)


def abstract():
    return jax.eval_shape(lambda: bert.Bert(CONFIG))


def tensors_of(module, prefix="") -> dict[str, np.ndarray]:
    """Returns the tensors of a Hugging Face checkpoint of `module`."""
    named_parameters = parameters(module)
    tensors = {}
    for name, path in bert.NAMES.items():
        array = np.asarray(named_parameters[path])
        for layer in range(CONFIG.num_hidden_layers) if "{}" in name else [...]:
            value = array[layer].T if path.endswith("/kernel") else array[layer]
            tensors[prefix + name.replace("{}", str(layer))] = np.array(value, order="C")
    return tensors


def write(folder: Path, tensors=None, **config) -> Path:
    """Writes a model's folder: config.json, tokenizer.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **dataclasses.asdict(CONFIG), **config}))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors_of(load.random(abstract(), 0)) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def assert_same(module, expected):
    loaded, expected = parameters(module), parameters(expected)
    assert loaded.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(np.asarray(loaded[path]), np.asarray(expected[path]), err_msg=path)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_fill_restores_every_parameter(tmp_path, prefix):
    model = load.random(abstract(), 3)
    tensors = tensors_of(model, prefix)
    extra = {"bert.embeddings.position_ids": np.arange(6), "cls.predictions.bias": np.zeros(11, np.float32)}
    folder = write(tmp_path, tensors | extra)
    assert_same(load.fill(abstract(), folder, bert.NAMES, prefix=prefix, ignore=bert.IGNORED), model)
    assert_same(load.load_base(str(folder), "bert", labels=4).model.backbone, model)


def test_fill_reads_shards_old_names_and_bfloat16(tmp_path):
    model = load.random(abstract(), 3, dtype=jnp.bfloat16)
    tensors = tensors_of(model)
    old = {new: name for name, new in bert.RENAMED.items()}
    tensors = {functools.reduce(lambda n, new: n.replace(new, old[new]), old, name): t for name, t in tensors.items()}
    assert "embeddings.LayerNorm.gamma" in tensors
    folder = write(tmp_path, {})
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, shard_names in shards.items():
        save_file({name: tensors[name] for name in shard_names}, folder / shard)
    index = {"weight_map": {name: shard for shard, shard_names in shards.items() for name in shard_names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert_same(load.fill(abstract(), folder, bert.NAMES, dtype=jnp.bfloat16, renamed=bert.RENAMED), model)
    base = load.load_base(str(folder), "bert", labels=4)
    assert base.model.backbone.layers.attn.q.kernel.dtype == jnp.float32
    assert_same(base.model.backbone, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model))

    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lists missing shards: b\.safetensors"):
        load.load_base(str(folder), "bert", labels=4)


def test_fill_lists_all_misfits(tmp_path):
    tensors = tensors_of(load.random(abstract(), 0))
    del tensors["encoder.layer.1.attention.self.query.bias"]
    tensors["pooler.dense.bias"] = np.zeros(9, np.float32)
    tensors["encoder.layer.3.output.dense.bias"] = np.zeros(8, np.float32)
    with pytest.raises(UserError) as error:
        load.fill(abstract(), write(tmp_path, tensors), bert.NAMES)
    assert str(error.value).splitlines()[1:] == [
        "missing:",
        "  encoder.layer.1.attention.self.query.bias [8], for layers/attn/q/bias",
        "unused:",
        "  encoder.layer.3.output.dense.bias [8]",
        "wrong shape:",
        "  pooler.dense.bias: expected [8], got [9]",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooler.dense.bias": None}, "missing:\n  pooler.dense.bias"),
        ({"lm_head.weight": np.zeros(3)}, "unused:\n  lm_head.weight"),
        ({"pooler.dense.bias": np.zeros(3)}, "wrong shape:\n  pooler.dense.bias"),
    ],
)
def test_fill_refuses_each_misfit(tmp_path, change, message):
    tensors = tensors_of(load.random(abstract(), 0)) | change
    folder = write(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(UserError, match=re.escape(message)):
        load.fill(abstract(), folder, bert.NAMES, ignore=bert.IGNORED)


def test_a_transposed_kernel_is_refused(tmp_path):
    tensors = tensors_of(load.random(abstract(), 0))
    name = "encoder.layer.2.output.dense.weight"
    tensors[name] = np.array(tensors[name].T, order="C")
    with pytest.raises(UserError, match=r"layer\.2\.output\.dense\.weight: expected \[8, 12\], got \[12, 8\]"):
        load.fill(abstract(), write(tmp_path, tensors), bert.NAMES)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load.load_base(str(tmp_path), "bert", labels=2)


def test_a_table_that_differs_from_the_module_is_an_error():
    names = dict(bert.NAMES)
    del names["pooler.dense.bias"]
    with pytest.raises(ValueError, match="pooler/bias"):
        load.fill(abstract(), Path("nowhere"), names)


def test_load_base_returns_a_model_with_a_zero_head(tmp_path):
    base = load.load_base(str(write(tmp_path)), "bert", labels=4, pool="first", dtype=jnp.bfloat16)
    assert isinstance(base.model, Classifier) and base.model.pool == "first"
    head = parameters(base.model)["head/kernel"]
    assert head.shape == (8, 4) and not head.any()
    assert {leaf.dtype for leaf in jax.tree.leaves(base.model)} == {jnp.dtype(jnp.bfloat16)}
    assert base.parameters == sum(tensor.size for tensor in load_file(tmp_path / "model.safetensors").values())
    assert base.source == str(tmp_path)
    assert base.tokenizer.encode("one two one three").ids == [1, 2, 1, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "roberta"}, r"model_type is 'roberta', but model\.family='bert'"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"vocab_size": 2}, r"expected \[2, 8\], got \[11, 8\]"),
    ],
)
def test_load_base_refuses_unsupported_configs(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        load.load_base(str(write(tmp_path, **config)), "bert", labels=2)


def test_load_base_names_the_bad_argument_or_file(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"model\.family='gpt9': must be one of bert"):
        load.load_base(str(tmp_path), "gpt9", labels=2)
    with pytest.raises(UserError, match="pool='max': must be one of mean, first"):
        load.load_base(str(tmp_path), "bert", labels=2, pool="max")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json has no num_attention_heads"):
        load.load_base(str(tmp_path), "bert", labels=2)
    write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load.load_base(str(tmp_path), "bert", labels=2)


def test_random_draws_kernels_and_embeddings_only():
    larger = jax.eval_shape(lambda: bert.Bert(dataclasses.replace(CONFIG, hidden_size=64, intermediate_size=256)))
    named_parameters = parameters(load.random(larger, 1, std=0.5))
    for path, array in named_parameters.items():
        kind = path.rsplit("/", 1)[-1]
        if kind in ("kernel", "embedding"):
            assert abs(float(array.mean())) < 6 * 0.5 / array.size**0.5, path
            assert abs(float(array.std()) - 0.5) < 6 * 0.5 / (2 * array.size) ** 0.5, path
        else:
            assert (array == (kind == "scale")).all(), path
    assert not np.array_equal(named_parameters["layers/attn/q/kernel"], named_parameters["layers/attn/k/kernel"])
    assert_same(load.random(larger, 1), load.random(larger, 1))
    assert fingerprint(load.random(larger, 1)) != fingerprint(load.random(larger, 2))


def test_fingerprint_changes_with_any_value_and_dtype():
    model = load.random(abstract(), 0)
    first = fingerprint(model)
    assert first == fingerprint(jax.tree.map(np.asarray, model))
    for path, array in parameters(model).items():
        bumped = np.array(array)
        bumped.flat[-1] = np.nextafter(bumped.flat[-1], np.float32(9))
        assert fingerprint(graft(model, {path: Replacement(jnp.asarray(bumped))})) != first, path
    zeros = load.random(abstract(), 0, std=0.0)
    assert fingerprint(zeros) != fingerprint(load.random(abstract(), 0, std=0.0, dtype=jnp.bfloat16))


BIAS = "encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of(load.random(abstract(), 0)).items()}
    tensors[BIAS].flat[3] = value
    with pytest.raises(UserError, match=rf"model\.safetensors: the tensor {re.escape(BIAS)} has NaN or infinity"):
        load.load_base(str(write(tmp_path, tensors)), "bert", labels=2, dtype=jnp.bfloat16)


def test_weights_too_large_for_the_parameters_dtype_are_refused(tmp_path):
    tensors = tensors_of(load.random(abstract(), 0))
    tensors[BIAS] = np.full(8, 1e300)
    with pytest.raises(UserError, match="has NaN or infinity as float32"):
        load.load_base(str(write(tmp_path, tensors)), "bert", labels=2)


def test_tensors_that_remain_unused_may_hold_anything(tmp_path):
    tensors = tensors_of(load.random(abstract(), 0))
    extra = {"embeddings.position_ids": np.arange(6), "cls.predictions.bias": np.full(11, np.nan, np.float32)}
    load.load_base(str(write(tmp_path, tensors | extra)), "bert", labels=2)


@pytest.mark.parametrize(("dtype", "name"), [(bool, "BOOL"), (np.int64, "I64"), (np.uint8, "U8")])
def test_tensors_of_other_dtypes_are_refused(tmp_path, dtype, name):
    tensors = tensors_of(load.random(abstract(), 0))
    tensors[BIAS] = np.ones(8, dtype)
    message = rf"wrong dtype:\n  {re.escape(BIAS)} in model\.safetensors: {name}, not F64, F32, F16, BF16"
    with pytest.raises(UserError, match=message):
        load.load_base(str(write(tmp_path, tensors)), "bert", labels=2)


def edit_header(file: Path, change) -> None:
    """Replaces the header of a safetensors file by what `change` makes of its text."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = change(content[8:end].decode()).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def entry_of(header: str, name: str) -> str:
    return f"{json.dumps(name)}:{json.dumps(json.loads(header)[name], separators=(',', ':'))}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: "{" + entry_of(header, BIAS) + "," + header[1:], f"the key '{BIAS}' stands twice"),
        (
            lambda header: header.replace(
                entry_of(header, BIAS), entry_of(header, BIAS).replace("F32", "F8_E4M3").replace("[8]", "[32]")
            ),
            "F8_E4M3|32",
        ),
        (lambda header: header.replace('"data_offsets":[0,', '"data_offsets":[4,'), "not a readable safetensors file"),
        (lambda header: header.replace('"dtype":"F32"', '"dtype":"F33"', 1), "not a readable safetensors file"),
    ],
    ids=["twice", "float8", "offsets", "dtype"],
)
def test_a_malformed_header_is_refused(tmp_path, change, message):
    edit_header(write(tmp_path) / "model.safetensors", change)
    with pytest.raises(UserError, match=message):
        load.load_base(str(tmp_path), "bert", labels=2)


def test_a_tensor_without_axes_is_refused(tmp_path):
    tensors = tensors_of(load.random(abstract(), 0))
    tensors |= {BIAS: np.zeros((), np.float32), "pooler.dense.weight": np.zeros((), np.float32)}
    with pytest.raises(UserError, match=r"bias: expected \[8\], got \[\]"):
        load.fill(abstract(), write(tmp_path, tensors), bert.NAMES)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "a.bin", 3, None, ["a"]])
def test_an_index_that_names_other_files_is_refused(tmp_path, shard):
    (write(tmp_path) / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {BIAS: shard}}))
    with pytest.raises(UserError, match=r"must be the name of a \*\.safetensors file beside the index"):
        load.load_base(str(tmp_path), "bert", labels=2)


@pytest.mark.parametrize("change", ["more", "less", "other"])
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, change):
    tensors = tensors_of(load.random(abstract(), 0))
    (write(tmp_path, tensors) / "model.safetensors").rename(tmp_path / "a.safetensors")
    save_file({"embeddings.position_ids": np.arange(6)}, tmp_path / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"embeddings.position_ids": "b.safetensors"}
    match change:
        case "more":
            weight_map["absent"] = "a.safetensors"
        case "less":
            del weight_map[BIAS]
        case "other":
            weight_map[BIAS] = "b.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json does not fit its shards: '(absent|encoder.*)' should be in"):
        load.load_base(str(tmp_path), "bert", labels=2)


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("hidden_size", -1, "greater than or equal to 1"),
        ("hidden_size", 0, "greater than or equal to 1"),
        ("hidden_size", 9, "is not a multiple of 2 heads"),
        ("hidden_size", True, "a valid integer"),
        ("hidden_size", None, "a valid integer"),
        ("num_hidden_layers", "two", "a valid integer"),
        ("num_hidden_layers", 10**9, "less than or equal to 4096"),
        ("vocab_size", 10**30, "less than or equal to 16777216"),
        ("layer_norm_eps", float("nan"), "a finite number"),
        ("layer_norm_eps", 0, "greater than 0"),
        ("hidden_act", ["gelu"], "a valid string"),
    ],
)
def test_sizes_that_are_not_sizes_are_refused(tmp_path, key, value, accepted):
    with pytest.raises(UserError, match=rf"config\.json: {key}={re.escape(repr(value))}.*{accepted}"):
        load.load_base(str(write(tmp_path, **{key: value})), "bert", labels=2)


def test_sizes_far_beyond_the_files_are_refused_before_memory_is_taken(tmp_path):
    folder = write(tmp_path, hidden_size=2**20, intermediate_size=2**24, num_hidden_layers=4096)
    with pytest.raises(UserError, match=r"\([\d,]{20,} parameters; the files have [\d,]{4,7} numbers\)(?s:.*)more"):
        load.load_base(str(folder), "bert", labels=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"model_type": "bert\xff"}', "is not UTF-8"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b" " * (2**24 + 1), "must be at most 16777216"),
    ],
    ids=["cut", "list", "deep", "latin", "twice", "huge"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_are_not_json_objects_are_refused(tmp_path, content, message, name):
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*{re.escape(message)}"):
        load.load_base(str(tmp_path), "bert", labels=2)


def test_a_tokenizer_with_an_id_beyond_the_vocabulary_is_refused(tmp_path):
    write(tmp_path)
    Tokenizer(models.WordLevel({"[UNK]": 0, "one": 11}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json has 2 tokens and the largest id is 11.*vocab_size=11"):
        load.load_base(str(tmp_path), "bert", labels=2)
