"""lora_jax.weights.adapters: saving and loading adapters."""

import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from lora_jax.adapters import LowRank, Replacement, Scaling
from lora_jax.errors import UserError
from lora_jax.methods.lora import Lora
from lora_jax.records.sealed import seal
from lora_jax.weights.adapters import load_adapter, save_adapter


def make_adapter(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "backbone/layers/attn/q/adapter": LowRank(draw(3, 8, 2), draw(3, 2, 8)),
        "backbone/layers/mlp/up/adapter": LowRank(draw(3, 8, 4).astype(jnp.bfloat16), draw(3, 4, 12)),
        "head/kernel": Replacement(draw(8, 4)),
        "head/bias": Replacement(draw(4)),
    }
    q, up = (path for path in params if path.endswith("/adapter"))
    return params, {q: Scaling(draw(3)), up: Scaling(draw(3), draw(3))}


BASE = {"base_source": "pypi://tiny-model==1.0", "base_fingerprint": "ab" * 32}
SETTINGS = {"method": "lora", "rank": 4, "alpha": 16.0, "targets": ["q", "up"], "labels": ["yes", "no"]}


def test_save_and_load_return_the_same_adapter(tmp_path):
    params, constants = make_adapter()
    folder = tmp_path / "run" / "adapter"
    size = save_adapter(folder, params, constants, config=SETTINGS, **BASE)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "delta.safetensors"]
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    with (folder / "delta.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["params/backbone/layers/attn/q/adapter/a"]["shape"] == [3, 8, 2]

    adapter = load_adapter(folder, base_fingerprint=BASE["base_fingerprint"])
    assert adapter.config == SETTINGS
    assert (adapter.base_source, adapter.base_fingerprint) == (BASE["base_source"], BASE["base_fingerprint"])
    for loaded, expected in ((adapter.params, params), (adapter.constants, constants)):
        assert jax.tree.structure(loaded) == jax.tree.structure(expected)
        for left, right in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    assert load_adapter(folder, base_fingerprint=None).config == SETTINGS


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", *make_adapter(), config=SETTINGS, **BASE)
    with pytest.raises(
        UserError, match=r"on pypi://tiny-model==1\.0 \(abababababab\), not on hf://x/y \(cdcdcdcdcdcd\)"
    ):
        load_adapter(tmp_path / "adapter", base_fingerprint="cd" * 32, base_source="hf://x/y")


def test_a_corrupt_adapter_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, *make_adapter(), config=SETTINGS, **BASE)
    file, description = folder / "delta.safetensors", folder / "adapter.json"
    tensors, text = file.read_bytes(), description.read_text()

    for broken in (tensors[:-1] + bytes([tensors[-1] ^ 1]), tensors[:-50], b""):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"delta\.safetensors is corrupt"):
            load_adapter(folder, base_fingerprint=None)
    file.write_bytes(tensors)
    changes = [
        (text[:-40], r"adapter\.json is not JSON"),
        ("[]", r"adapter\.json is not a JSON object"),
        (text.replace('"format": 3', '"format": 7'), "format is 7"),
        (text.replace("mlp/up/adapter", "mlp/down/adapter"), r"adapter\.json is damaged"),
    ]
    for changed, message in changes:
        description.write_text(changed)
        with pytest.raises(UserError, match=message):
            load_adapter(folder, base_fingerprint=None)
    description.unlink()
    with pytest.raises(UserError, match=r"has no adapter: adapter\.json is missing"):
        load_adapter(folder, base_fingerprint=None)


def test_a_killed_save_leaves_a_complete_adapter_or_none(tmp_path):
    folder = tmp_path / "adapter"
    code = (
        "import sys, numpy as np\n"
        "from lora_jax.adapters import Replacement\n"
        "from lora_jax.weights.adapters import save_adapter\n"
        "params = {'head/kernel': Replacement(np.zeros((1000, 1000), np.float32))}\n"
        "while True:\n"
        "    save_adapter(sys.argv[1], params, {}, base_source='x', base_fingerprint='y', config={})\n"
        "    print(flush=True)"
    )
    saver = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    for _ in range(3):
        saver.stdout.readline()
    saver.kill()
    saver.communicate()
    if folder.exists():
        assert load_adapter(folder, base_fingerprint="y").params["head/kernel"].value.shape == (1000, 1000)


def test_an_adapter_replaces_an_adapter_and_nothing_else(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, *make_adapter(0), config={"seed": 0}, **BASE)
    with pytest.raises(TypeError):  # not JSON: fails before anything is written
        save_adapter(folder, *make_adapter(1), config={"seed": object()}, **BASE)
    assert load_adapter(folder, base_fingerprint=None).config == {"seed": 0}
    save_adapter(folder, *make_adapter(1), config={"seed": 1}, **BASE)
    assert load_adapter(folder, base_fingerprint=None).config == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not an adapter's folder"):
        save_adapter(tmp_path / "thesis", *make_adapter(), config={}, **BASE)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_format_1_is_read(tmp_path):
    """Lora_jax wrote format 1 until November 2026: plain arrays, pairs under /lora, scales in adapter.json."""
    pair = {"a": np.ones((3, 8, 2), np.float32), "b": np.full((3, 2, 8), 2, np.float32)}
    kernel, path = np.ones((8, 4), np.float32), "backbone/layers/attn/q/lora"
    tensors = save({f"{path}/a": pair["a"], f"{path}/b": pair["b"], "head/kernel": kernel})
    (tmp_path / "delta.safetensors").write_bytes(tensors)
    description = {
        "format": 1,
        "base": {"source": "x", "fingerprint": "y"},
        "delta": {path: ["a", "b"], "head/kernel": None},
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "scale": {path: [4.0, 0.0, 4.0]},
        "config": {"method": "lora", "base": "auto"},
    }
    (tmp_path / "adapter.json").write_text(json.dumps(description))
    adapter = load_adapter(tmp_path, base_fingerprint="y")
    delta = Lora().materialise(adapter.params, adapter.constants)
    assert delta.keys() == {"backbone/layers/attn/q/adapter", "head/kernel"}
    product = delta["backbone/layers/attn/q/adapter"].product()
    np.testing.assert_array_equal(product[:, 0, 0], [16, 0, 16])
    np.testing.assert_array_equal(delta["head/kernel"].value, kernel)


def test_a_flipped_bit_in_either_file_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, *make_adapter(), config=SETTINGS, **BASE)
    for name in ("adapter.json", "delta.safetensors"):
        content = (folder / name).read_bytes()
        for position in range(0, len(content), 97):
            flipped = bytearray(content)
            flipped[position] ^= 1
            (folder / name).write_bytes(flipped)
            if name == "adapter.json" and _same_json(flipped, content):
                continue
            with pytest.raises(UserError, match=name):
                load_adapter(folder, base_fingerprint=None)
        (folder / name).write_bytes(content)
    load_adapter(folder, base_fingerprint=None)


def _same_json(one, other) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def draw(*shape, fill=1.0, dtype=jnp.float32):
    return jnp.full(shape, fill, dtype)


Q = "backbone/layers/attn/q/adapter"


@pytest.mark.parametrize(
    ("params", "constants", "message"),
    [
        ({Q: LowRank(draw(3, 8, 2, fill=np.nan), draw(3, 2, 8))}, {}, "adapter/a has NaN or infinity"),
        ({"head/bias": Replacement(draw(4, fill=np.inf))}, {}, "head/bias/value has NaN or infinity"),
        ({}, {Q: Scaling(draw(3, fill=np.nan))}, "adapter/scale has NaN"),
        (
            {Q: LowRank(draw(3, 8, 2), draw(3, 4, 8))},
            {},
            r"adapter/b is float32\[3, 4, 8\]; must be Float\[\*layers rank",
        ),
        ({Q: LowRank(draw(3, 8, 2), draw(1, 2, 8))}, {}, r"adapter/b is float32\[1, 2, 8\]"),
        ({Q: LowRank(draw(3, 8, 2, dtype=jnp.int32), draw(3, 2, 8))}, {}, r"adapter/a is int32\[3, 8, 2\]"),
        ({"head/bias": Replacement(draw(4), draw(4))}, {}, r"head/bias/active is float32\[4\]; must be Bool"),
    ],
)
def test_an_adapter_whose_arrays_are_not_as_declared_is_refused(tmp_path, params, constants, message):
    save_adapter(tmp_path / "adapter", params, constants, config={}, **BASE)
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path / "adapter", base_fingerprint=None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "lora", "fields": ["value"]}, "kind='lora': must be one of low_rank, scaling"),
        ({"kind": "replacement", "fields": ["values"]}, r"fields=\['values'\]: must be of value, active"),
        ({"kind": "replacement", "fields": "value"}, r"params\.head/bias\.fields='value'"),
        ({"kind": "replacement", "fields": ["value", "active"]}, "no tensor params/head/bias/active"),
        (None, r"params\.head/bias=None"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_description_that_does_not_fit_is_refused(tmp_path, entry, message, version):
    folder = tmp_path / "adapter"
    save_adapter(folder, {"head/bias": Replacement(draw(4))}, {}, config={}, **BASE)
    values = json.loads((folder / "adapter.json").read_text()) | {"params": {"head/bias": entry}, "format": version}
    values = seal(values) if version == 3 else values | {"sha256": values.pop("tensors_sha256")}
    (folder / "adapter.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_adapter(folder, base_fingerprint=None)


@pytest.mark.parametrize(("value", "file"), [("two", "adapter.json"), ([float("nan")], "delta.safetensors")])
def test_the_message_about_a_long_key_is_short(tmp_path, value, file):
    folder, path = tmp_path / "adapter", "x" * 5000
    save_adapter(folder, {path: Replacement(draw(4))}, {}, config={}, **BASE)
    values = json.loads((folder / "adapter.json").read_text()) | {"scales": {f"params/{path}/value": value}}
    (folder / "adapter.json").write_text(json.dumps(seal(values)))
    with pytest.raises(UserError, match=rf"{file}.*xxx \.\.\. xxx") as error:
        load_adapter(folder, base_fingerprint=None)
    assert len(str(error.value)) < 1000


def test_format_2_is_read(tmp_path):
    save_adapter(tmp_path / "adapter", *make_adapter(), config=SETTINGS, **BASE)
    file = tmp_path / "adapter" / "adapter.json"
    values = json.loads(file.read_text()) | {"format": 2}
    file.write_text(json.dumps(values | {"sha256": values.pop("tensors_sha256")}))
    adapter = load_adapter(tmp_path / "adapter", base_fingerprint=None)
    params, constants = make_adapter()
    assert jax.tree.structure((adapter.params, adapter.constants)) == jax.tree.structure((params, constants))
