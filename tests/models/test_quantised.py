"""Frozen bases at 4 and 8 bits: the formats against plain numpy, and training and loading with them.

`pytest tests/models/test_quantised.py -s -k "bytes or pack"` prints bytes per parameter, and the largest difference
between a pack and its runs alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.command_line import CommandLine, read, runs
from helpers.slow import sometimes
from scipy.stats import norm
from train.test_pack import QUICK, RUNS, compare

from lora_jax.adapters import LowRank, Replacement, low_rank
from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate, left_pad
from lora_jax.methods.lora import Lora
from lora_jax.models import llama
from lora_jax.models.causal import CausalLM
from lora_jax.models.options import ComputeOptions
from lora_jax.models.quantised import KINDS, NF4, is_quantised, quantisable, quantise
from lora_jax.targets import sites
from lora_jax.train.memory import size
from lora_jax.train.step import loss_of
from lora_jax.weights import load
from lora_jax.weights.adapters import load_adapter
from lora_jax.weights.fingerprint import fingerprint

# Shapes that fill their blocks and groups, and shapes that do not; stacked and not stacked.
SHAPES = [(128, 512), (3, 64, 256), (100, 7), (2, 33, 300), (1, 1)]


def kernel_of(shape, seed=0):
    """Returns weights with heavy tails, like real ones, and one output that is all zero."""
    kernel = 0.02 * np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)
    kernel[..., -1] *= shape[-1] == 1
    return kernel


def quantised(base, kind):
    """Returns `base` as load_base would store it."""
    kernels = {path: leaf for path, leaf in parameters(base).items() if quantisable(path)}
    return graft(base, {path: Replacement(quantise(leaf, kind)) for path, leaf in kernels.items()})


def dense(base):
    """Returns the dequantised base."""
    kernels = {path: leaf for path, leaf in parameters(base).items() if is_quantised(leaf)}
    return graft(base, {path: Replacement(leaf.astype(leaf.dtype)) for path, leaf in kernels.items()})


# ---- the formats


def test_nf4_has_the_published_code_book():
    published = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
        -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634
        0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""  # QLoRA, appendix E
    np.testing.assert_array_equal(NF4, np.array(published.split(), np.float32))
    # bitsandbytes computes it as quantiles of N(0, 1), 8 above zero and 7 below.
    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    np.testing.assert_allclose(NF4, np.sort([*above, 0, *below]) / above.max(), atol=2e-7)


def blocks_of(kernel):
    """``[blocks, 64, d_out]`` of one kernel, zeros where its last block is not full."""
    padded = np.pad(kernel, ((0, -kernel.shape[0] % 64), (0, 0)))
    return padded.reshape(-1, 64, kernel.shape[1])


def nf4_reference(kernel):
    """(codes, weights, absmax as it is, absmax as it is stored, its bound) of one kernel, step by step."""
    blocks = blocks_of(kernel)
    absmax = np.abs(blocks).max(1)
    unit = blocks / np.where(absmax > 0, absmax, 1)[:, None]
    codes = np.abs(unit[..., None] - NF4).argmin(-1)
    offset = absmax.mean(dtype=np.float32)
    flat = (absmax - offset).ravel()
    groups = np.pad(flat, (0, -flat.size % 256)).reshape(-1, 256)
    scale = np.abs(groups).max(1, keepdims=True) / np.float32(127)
    stored = np.round(groups / np.where(scale > 0, scale, 1)) * scale + offset
    bound = np.broadcast_to(np.abs(groups).max(1, keepdims=True) / 254, groups.shape)
    stored, bound = (x.ravel()[: flat.size].reshape(absmax.shape) for x in (stored, bound))
    weights = (NF4[codes] * stored[:, None]).reshape(-1, kernel.shape[1])[: kernel.shape[0]]
    return codes, weights, absmax, stored, bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_equals_the_numpy_reference_within_its_bound(shape):
    kernel = kernel_of(shape)
    ours = quantise(jnp.asarray(kernel), "nf4")
    assert (ours.shape, ours.size, ours.dtype) == (kernel.shape, kernel.size, kernel.dtype)
    got = np.asarray(ours.astype(jnp.float32)).reshape(-1, *shape[-2:])
    for layer, whole in zip(got, kernel.reshape(-1, *shape[-2:]), strict=True):
        _, expected, absmax, stored, bound = nf4_reference(whole)
        np.testing.assert_allclose(layer, expected, rtol=1e-5, atol=1e-6 * np.abs(whole).max())
        # The bounds that Nf4Kernel's docstring gives, with room for float32's rounding.
        assert (np.abs(stored - absmax) <= bound + 1e-6 * absmax.max()).all()
        widest = np.diff(NF4).max() / 2
        assert (np.abs(blocks_of(layer - whole)) <= (1.001 * widest * absmax + bound + 1e-8)[:, None]).all()
        assert not layer[whole == 0].any()


def test_nf4_packs_two_rows_of_a_block_into_a_byte():
    kernel = kernel_of((130, 5))
    codes = nf4_reference(kernel)[0]
    packed = np.asarray(quantise(jnp.asarray(kernel), "nf4").codes).reshape(3, 32, 5)
    np.testing.assert_array_equal(packed & 15, codes[:, :32])
    np.testing.assert_array_equal(packed >> 4, codes[:, 32:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_within_its_bound(shape):
    kernel = kernel_of(shape)
    ours = quantise(jnp.asarray(kernel), "int8")
    assert (ours.shape, ours.size, ours.dtype) == (kernel.shape, kernel.size, kernel.dtype)
    most = np.abs(kernel).max(-2, keepdims=True)
    error = np.abs(np.asarray(ours.astype(jnp.float32)) - kernel)
    assert (error <= most / 254 * 1.001).all()
    assert error.max() > most.max() / 1000 or kernel.size == 1  # rounded it is
    assert np.abs(np.asarray(ours.codes)).max() == 127


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_twice_changes_nothing(kind):
    """Quantisation keeps the largest weight of a block or an output, so the second time nothing is lost."""
    once = quantise(jnp.asarray(kernel_of((256, 300))), kind).astype(jnp.float32)
    twice = quantise(once, kind).astype(jnp.float32)
    np.testing.assert_allclose(twice, once, atol=0.01 * jnp.abs(once).max() if kind == "nf4" else 1e-8)


def test_bytes_per_parameter(capsys):
    """At most 0.72 and 0.58 for Llama shapes with embeddings at two bytes. Allocates nothing."""

    def stored(vocab, width, inner, blocks, heads, kv_heads, kind):
        config = llama.LlamaConfig(vocab, width, inner, blocks, heads, num_key_value_heads=kv_heads)
        return jax.eval_shape(
            lambda: load.random(jax.eval_shape(lambda: CausalLM(llama.Llama(config))), 0, dtype=jnp.bfloat16, kind=kind)
        )

    for name, shape, most in (
        ("Llama 3 8B", (128256, 4096, 14336, 32, 32, 8), 0.72),
        ("Llama 2 7B", (32000, 4096, 11008, 32, 32, 32), 0.58),
    ):
        base = stored(*shape, kind="nf4")
        kernels = [leaf for leaf in parameters(base).values() if is_quantised(leaf)]
        assert count(base) == count(stored(*shape, kind=None)) and len(kernels) == 7
        narrow, whole = size(kernels) / count(kernels), size(base) / count(base)
        eighth = stored(*shape, kind="int8")
        with capsys.disabled():
            print(f"\n{name}: {narrow:.4f} bytes a quantised weight, {whole:.3f} with embeddings in bfloat16", end="")
        assert 4 / 8 < narrow < 4.13 / 8 and whole < most
        assert size(eighth.backbone.layers) / count(eighth.backbone.layers) < 1.002


# ---- in a model


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_has_the_same_parameters(base, kind):
    narrow = quantised(base, kind)
    assert {path: leaf.shape for path, leaf in parameters(narrow).items()} == {
        path: leaf.shape for path, leaf in parameters(base).items()
    }
    assert count(narrow) == count(base) and size(narrow) < size(base)
    assert sites(narrow) == sites(base)
    whole = {path for path, leaf in parameters(narrow).items() if not is_quantised(leaf)}
    assert {path for path in whole if path.endswith("kernel")} == {"backbone/pooler/kernel", "head/kernel"}
    assert all(parameters(narrow)[path] is parameters(base)[path] for path in whole)
    assert len({fingerprint(model) for model in (base, dense(narrow), narrow)}) == 3
    assert fingerprint(narrow) == fingerprint(quantised(base, kind))


@pytest.mark.parametrize(
    ("kind", "merging"),
    [
        ("nf4", True),
        ("int8", False),
        pytest.param("nf4", False, marks=pytest.mark.slow),
        pytest.param("bf16", True, marks=pytest.mark.slow),
        pytest.param("bf16", False, marks=pytest.mark.slow),
    ],
)
def test_gradients_equal_those_of_the_dequantised_base(base, kind, merging, configure, pack_of, monkeypatch):
    """The forward pass saves no dequantised kernel: the backward pass dequantises it again, for a pack too.

    W and A·B are merged on a CPU alone.
    """
    monkeypatch.setattr(low_rank, "_forms_product", lambda x: merging)
    kernels = {path: leaf for path, leaf in parameters(base).items() if quantisable(path)}
    store = {"bf16": lambda kernel: kernel.astype(jnp.bfloat16)}.get(kind, lambda kernel: quantise(kernel, kind))
    stored = {path: store(leaf) for path, leaf in kernels.items()}
    narrow = graft(base, {path: Replacement(leaf) for path, leaf in stored.items()})
    wide = graft(base, {path: Replacement(leaf.astype(jnp.float32)) for path, leaf in stored.items()})
    pack = pack_of(base, [configure(rank=4, targets="q+mlp", seed=seed, batch=5) for seed in (0, 1)])
    # B starts at zero, where A has no gradient.
    params = jax.tree.map(lambda leaf: leaf + 0.01, pack.state.params)

    def loss(base, params):
        one = jax.vmap(lambda *run: loss_of(pack.program, base, *run, 0))
        return one(params, pack.constants, pack.hyper, pack.example()).sum()

    got, expected = (jax.jit(jax.grad(loss, argnums=1))(model, params) for model in (narrow, wide))
    for path, ours in got.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), ours, expected[path])

    kept = jax.eval_shape(lambda base, params: jax.vjp(lambda params: loss(base, params), params)[1], narrow, params)
    widths = {leaf.shape[-2:] for leaf in kernels.values()}
    assert not [leaf for leaf in jax.tree.leaves(kept) if leaf.dtype == jnp.float32 and leaf.shape[-2:] in widths]


@pytest.mark.slow
def test_a_compiled_step_dequantises_few_kernels_at_a_time():
    """XLA's temporaries are a fraction of the dequantised kernels, for 16 blocks of 12 x 128 x 128 weights."""
    config = llama.LlamaConfig(50, 128, 256, 16, 4)
    model = jax.eval_shape(lambda: CausalLM(llama.Llama(config)))
    tokens = jnp.zeros((2, 8), jnp.int32)

    def temporary(kind):
        narrow = load.random(model, 0, kind=kind)
        pair = LowRank(jnp.ones((16, 128, 2)), jnp.ones((16, 2, 128)))

        def loss(pair, base):
            logits = graft(base, {"backbone/layers/attn/q/adapter": pair})(tokens, tokens == 0)
            return (logits**2).sum()

        compiled = jax.jit(jax.grad(loss)).lower(pair, narrow).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    wide = 4 * 16 * (4 * 128 * 128 + 3 * 128 * 256)
    narrow, plain = temporary("nf4"), temporary(None)
    print(f"\ntemporaries: {plain} bytes on a float32 base, {narrow} on an nf4 one; its kernels at full width: {wide}")
    assert narrow - plain < wide / 4


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_a_dequantised_model(base, kind, configure):
    narrow = quantised(base, kind)
    start = Lora().init(narrow, configure(rank=4, targets="qv"))
    delta = Lora().materialise(jax.tree.map(lambda leaf: leaf + 0.02, start.params), start.constants)
    tokens = jnp.arange(24).reshape(2, 12)
    merged = merge(narrow, delta)
    assert not any(map(is_quantised, parameters(merged).values()))
    assert parameters(merged)["backbone/layers/mlp/up/kernel"].dtype == jnp.float32
    expected = graft(narrow, delta)(tokens, tokens >= 0)
    np.testing.assert_allclose(merged(tokens, tokens >= 0), expected, atol=1e-5)
    back = merge(merged, {path: value for path, value in delta.items() if isinstance(value, LowRank)}, sign=-1)
    for path, leaf in parameters(dense(narrow)).items():
        if not path.startswith("head/"):
            np.testing.assert_allclose(parameters(back)[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", sometimes(KINDS, "nf4"))
def test_a_quantised_decoder_generates_what_the_dequantised_one_does(kind):
    config = llama.LlamaConfig(29, 16, 24, 2, 4, num_key_value_heads=2)
    narrow = load.random(jax.eval_shape(lambda: CausalLM(llama.Llama(config))), 0, std=0.5, kind=kind)
    tokens, mask = left_pad([[3, 4, 5], [7]], 0)
    decoding = Decoding(new_tokens=6)
    texts = [generate(model, tokens, mask, decoding) for model in (narrow, dense(narrow))]
    np.testing.assert_array_equal(*texts)
    assert len(np.unique(texts[0])) > 2


@pytest.mark.slow
def test_packed_equals_alone_on_an_nf4_base(base, pack_of, configure):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), base)
        runs = [configure(**run, steps=100, batch=8, dtype="float64") for run in (RUNS[0], RUNS[3])]
        differences = compare(quantised(wide, "nf4"), pack_of, runs, QUICK)
    print("\nfloat64, nf4 base:", *differences, sep="\n")
    assert max(value for run in differences for value in run.values()) < 1e-9


# ---- from a checkpoint to a sweep


@pytest.mark.parametrize("kind", KINDS)
def test_loading_quantises_a_layer_at_a_time(tiny_model, kind, monkeypatch):
    dimensions = []
    monkeypatch.setattr(load, "quantise", lambda kernel, kind: dimensions.append(kernel.ndim) or quantise(kernel, kind))
    loaded = load.load_base(str(tiny_model), "bert", labels=3, base_storage=kind)
    assert len(dimensions) == 2 * 6 and set(dimensions) == {2}
    whole = load.load_base(str(tiny_model), "bert", labels=3)
    assert loaded.parameters == whole.parameters and loaded.fingerprint != whole.fingerprint
    assert loaded.fingerprint == fingerprint(quantised(whole.model, kind))


@pytest.mark.parametrize(("base", "stored"), [("auto", "float16"), ("f32", "float32"), ("bf16", "bfloat16")])
def test_the_stored_dtype_is_not_the_computed_one(tiny_model, base, stored):
    loaded = load.load_base(str(tiny_model), "bert", labels=3, dtype=jnp.float16, base_storage=base)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.model)} == {stored}
    tokens = jnp.arange(1, 9)[None]
    assert loaded.model(tokens, tokens > 0, options=ComputeOptions(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("base", KINDS)
def test_full_fine_tuning_of_a_quantised_base_is_an_error(configure, base):
    with pytest.raises(UserError, match=f"base_storage='{base}': must be auto, f32 or bf16 with method=full"):
        configure("full", base_storage=base)
    assert configure("full", base_storage="bf16").base_storage == "bf16"


@pytest.mark.slow
def test_a_sweep_on_an_nf4_base(command: CommandLine, tmp_path):
    """LoRA trains on the quantised base, full fine-tuning on the unquantised one. The adapter records which."""
    sweep = tmp_path / "sweep"
    done = command.sweep(sweep, "rank=2,4", "base_storage=nf4", "steps=1")
    assert done.returncode == 0, done.stderr
    assert "2 x lora on the nf4 base" in done.stdout and "1 x full, " in done.stdout
    assert runs(sweep) == ["method=full", "rank=2", "rank=4"]
    run, full = (read(sweep / name / "run.json") for name in ("rank=4", "method=full"))
    assert (run["config"]["base_storage"], full["config"]["base_storage"]) == ("nf4", "auto")
    assert run["base"]["parameters"] == full["base"]["parameters"]
    adapter = load_adapter(sweep / "rank=4/adapter", base_fingerprint=run["base"]["fingerprint"])
    assert adapter.config["base_storage"] == "nf4"
    with pytest.raises(UserError, match=r"stored as nf4.*, not on the base given"):
        load_adapter(sweep / "rank=4/adapter", base_fingerprint=full["base"]["fingerprint"])
