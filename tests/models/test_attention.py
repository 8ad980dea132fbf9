"""The choice between XLA and cuDNN. JAX's XLA attention stands in for cuDNN's kernel, with the same arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, meaningful, model_of

from lora_jax.adapters import VirtualRows, VirtualStates, VirtualTokens
from lora_jax.delta import graft
from lora_jax.errors import UserError
from lora_jax.models import bert, decoder, vit
from lora_jax.models.attention import AttentionContext, RightPadding, attention, uses_cudnn
from lora_jax.models.options import ComputeOptions

HOPPER, AMPERE, TURING = (9, 0), (8, 6), (7, 5)
FITS = {"dtype": jnp.bfloat16, "d_head": 64, "obstacles": {}, "version": (0, 12, 0)}


def cudnn_is_used(implementation, capability, **changes):
    return uses_cudnn(implementation, **(FITS | changes), capability=lambda: capability)


@pytest.mark.parametrize(
    "capability, changes, reason",
    [
        (None, {}, "this device is no CUDA GPU"),
        (TURING, {}, r"this GPU is older than compute capability 8\.0"),
        (HOPPER, {"dtype": jnp.float32}, "dtype=float32 is not bfloat16 or float16"),
        (HOPPER, {"version": (0, 10, 2)}, r"jax 0\.10\.2 is older than 0\.11\.1"),
        (HOPPER, {"d_head": 36}, "heads of width 36 are not a multiple of 8 up to 256"),
        (HOPPER, {"d_head": 264}, "heads of width 264 .* up to 256"),
        (AMPERE, {"d_head": 256}, "heads of width 256 .* up to 128"),
        (HOPPER, {"obstacles": {"it rains": True, "it snows": False}}, r"it rains\. Use auto or xla"),
    ],
)
def test_an_obstacle_makes_auto_use_xla_and_makes_cudnn_an_error(capability, changes, reason):
    assert not cudnn_is_used("auto", capability, **changes) and not cudnn_is_used("xla", capability, **changes)
    with pytest.raises(UserError, match=f"model.attention=cudnn is not available: .*{reason}"):
        cudnn_is_used("cudnn", capability, **changes)


@pytest.mark.parametrize("changes", [{}, {"dtype": jnp.float16}, {"d_head": 256}, {"version": (0, 11, 1)}])
def test_without_obstacles_auto_uses_cudnn(changes):
    assert cudnn_is_used("auto", HOPPER, **changes) and cudnn_is_used("cudnn", HOPPER, **changes)
    assert not cudnn_is_used("xla", HOPPER, **changes)
    assert cudnn_is_used("auto", AMPERE)


def test_an_unknown_implementation_is_an_error():
    with pytest.raises(UserError, match=r"model\.attention='flash': must be one of auto, xla, cudnn"):
        cudnn_is_used("flash", HOPPER)


@pytest.mark.parametrize("name", ["bert", "deberta", "vit", "llama"])
def test_tracing_a_model_raises_for_unavailable_cudnn(name):
    """The planner traces every program, so the error comes before anything trains."""
    with pytest.raises(UserError, match=r"model\.attention=cudnn is not available: this device is no CUDA GPU"):
        jax.eval_shape(lambda: model_of(name)(*inputs_of(name), options=ComputeOptions(attention="cudnn")))


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Makes cuDNN available, for float32 too, with JAX's XLA attention in its place. Records the calls' arguments."""
    calls, original = [], jax.nn.dot_product_attention

    def record(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        calls.append(kwargs)
        return original(*args, implementation="xla", **kwargs)

    def uses(implementation, dtype, d_head, obstacles):
        return uses_cudnn(
            implementation, jnp.bfloat16, d_head, obstacles, capability=lambda: HOPPER, version=(0, 12, 0)
        )

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    for module in (bert, decoder, vit):
        monkeypatch.setattr(module, "uses_cudnn", uses)
    return calls


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_cudnn_gives_the_outputs_and_gradients_of_xla(name, cudnn_calls):
    """With padding on every side, causal or not, with grouped heads."""
    model, (tokens, mask) = model_of(name), inputs_of(name)

    def loss(model, implementation):
        output = model(tokens, mask, options=ComputeOptions(attention=implementation))
        return jnp.square(meaningful(name, output, mask)).sum(), output

    runs = {
        implementation: jax.jit(
            jax.value_and_grad(functools.partial(loss, implementation=implementation), has_aux=True)
        )
        for implementation in ("xla", "auto")
    }
    ((_, expected), slow), ((_, output), fast) = runs["xla"](model), runs["auto"](model)
    assert len(cudnn_calls) == 1 and cudnn_calls[0]["is_causal"] == (name == "llama")
    np.testing.assert_allclose(meaningful(name, output, mask), meaningful(name, expected, mask), atol=2e-5)
    for one, other in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1, float(jnp.abs(other).max())))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_cudnn_gives_the_outputs_of_xla_with_virtual_tokens(name, cudnn_calls):
    """Their states after the first block are replaced, so their columns must be known after reordering."""
    tokens, mask = inputs_of(name)
    rng, number = np.random.default_rng(2), jnp.arange(5)
    rows, states = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 24), (2, 5, 24)))
    delta = {
        "backbone/virtual": VirtualTokens(number < 2, number == 2),
        f"backbone/embed{'/word' * (name == 'bert')}/adapter": VirtualRows(rows),
        "backbone/layers/after_block/adapter": VirtualStates(states, jnp.array([True, False])),
    }
    model = graft(model_of(name), delta)
    slow, fast = (
        meaningful(name, model(tokens, mask, options=ComputeOptions(attention=implementation)), mask)
        for implementation in ("xla", "auto")
    )
    assert cudnn_calls
    np.testing.assert_allclose(fast, slow, atol=2e-5)


@pytest.mark.parametrize("name, reason", [("gemma2", "caps its scores"), ("gemma3", "layers have different windows")])
def test_a_model_that_cudnn_does_not_support_uses_xla(name, reason, cudnn_calls):
    tokens, mask = inputs_of(name)
    jax.eval_shape(lambda: model_of(name)(tokens, mask, options=ComputeOptions(attention="auto")))
    assert not cudnn_calls
    with pytest.raises(UserError, match=reason):
        jax.eval_shape(lambda: model_of(name)(tokens, mask, options=ComputeOptions(attention="cudnn")))


def test_dropout_packed_sequences_and_decoding_use_xla(cudnn_calls):
    model, (tokens, mask) = model_of("llama"), inputs_of("llama")
    cudnn = ComputeOptions(attention="cudnn")
    for reason, kwargs in {
        "drops out": {"key": jax.random.key(0)},
        "packed into one": {"segments": mask.astype(int)},
    }.items():
        with pytest.raises(UserError, match=reason):
            jax.eval_shape(lambda kwargs=kwargs: model(tokens, mask, options=cudnn, **kwargs))
    cache = model.backbone.empty_cache(4, 12)
    jax.eval_shape(lambda: model(tokens, mask, options=cudnn, cache=cache))
    assert not cudnn_calls


def test_cudnn_gets_the_window(cudnn_calls):
    q, k, v = (np.random.default_rng(i).normal(size=(2, 9, 2, 8)).astype(np.float32) for i in range(3))
    row, column = np.arange(9)[:, None], np.arange(9)
    mask = np.broadcast_to((column <= row) & (row - column < 4), (2, 1, 9, 9))
    padding = RightPadding.from_mask(np.ones((2, 9), bool))
    xla, cudnn = (AttentionContext(mask, 0.0, cudnn, padding, True, 4).attend(q, k, v, None) for cudnn in (False, True))
    np.testing.assert_allclose(cudnn, xla, atol=1e-5)
    assert cudnn_calls[0]["local_window_size"] == (3, 0)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("implementation", ["xla", "auto"])
def test_a_text_of_padding_alone_is_finite_and_changes_no_other(name, implementation, cudnn_calls):
    model, (tokens, mask) = jax.tree.map(lambda leaf: leaf, model_of(name)), inputs_of(name)
    empty = mask.copy()
    empty[1] = False
    if name == "bert":
        model.pool = "first"  # a mean over no token is not attention's to handle

    def loss(model, mask):
        output = model(tokens, mask, options=ComputeOptions(attention=implementation))
        return jnp.square(output[:1]).sum() + 0 * output.sum(), output

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, whole), _ = step(model, mask)
    (_, output), grads = step(model, empty)
    assert bool(cudnn_calls) == (implementation == "auto")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((output, grads)))
    np.testing.assert_allclose(output[0], whole[0], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_equal_repeated_heads(kv_heads):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, heads, 4)).astype(np.float32) for heads in (6, kv_heads, kv_heads))
    mask = rng.random((2, 1, 5, 5)) < 0.7
    repeated = (np.repeat(x, 6 // kv_heads, axis=2) for x in (k, v))
    np.testing.assert_allclose(attention(q, k, v, mask), attention(q, *repeated, mask), atol=1e-6)


def test_right_padding_moves_padding_behind_the_tokens_and_back():
    _, mask = inputs_of("bert")
    x = np.random.default_rng(0).normal(size=(*mask.shape, 3)).astype(np.float32)
    padding = RightPadding.from_mask(mask)
    moved = padding.apply(x)
    np.testing.assert_array_equal(padding.lengths, mask.sum(-1))
    for i, length in enumerate(padding.lengths):
        np.testing.assert_array_equal(moved[i, :length], x[i, mask[i]])
    np.testing.assert_array_equal(padding.undo(moved), x)
    assert RightPadding().apply(x) is x and RightPadding().undo(x) is x
