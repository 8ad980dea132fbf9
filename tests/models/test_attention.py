"""What computes attention, and that cuDNN would be told what XLA is: its kernel's place is taken by JAX's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, model_of, seen

from lora_jax.errors import UserError
from lora_jax.models import bert, decoder, vit
from lora_jax.models.attention import Front, attention, uses_cudnn

HOPPER, AMPERE, TURING = (9, 0), (8, 6), (7, 5)
FITS = {"dtype": jnp.bfloat16, "d_head": 64, "obstacles": {}, "version": (0, 12, 0)}


def used(asked, capability, **changes):
    return uses_cudnn(asked, **(FITS | changes), capability=lambda: capability)


@pytest.mark.parametrize(
    "capability, changes, why",
    [
        (None, {}, "this device is no CUDA GPU"),
        (TURING, {}, r"this GPU is older than compute capability 8\.0"),
        (HOPPER, {"dtype": jnp.float32}, "dtype=float32 is not bfloat16 or float16"),
        (HOPPER, {"version": (0, 10, 2)}, r"jax 0\.10\.2 is older than 0\.11\.1"),
        (HOPPER, {"d_head": 36}, "heads of width 36 are not a multiple of 8 up to 256"),
        (HOPPER, {"d_head": 264}, "heads of width 264 .* up to 256"),
        (AMPERE, {"d_head": 256}, "heads of width 256 .* up to 128"),
        (HOPPER, {"obstacles": {"it rains": True, "it snows": False}}, r"had: it rains\. Use auto or xla"),
    ],
)
def test_where_cudnn_cannot_be_had_auto_is_xla_and_cudnn_is_refused(capability, changes, why):
    assert not used("auto", capability, **changes) and not used("xla", capability, **changes)
    with pytest.raises(UserError, match=f"model.attention=cudnn cannot be had: .*{why}" if "rains" not in why else why):
        used("cudnn", capability, **changes)


@pytest.mark.parametrize("changes", [{}, {"dtype": jnp.float16}, {"d_head": 256}, {"version": (0, 11, 1)}])
def test_where_cudnn_can_be_had_auto_takes_it(changes):
    assert used("auto", HOPPER, **changes) and used("cudnn", HOPPER, **changes) and not used("xla", HOPPER, **changes)
    assert used("auto", AMPERE)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"model\.attention='flash': must be one of auto, xla, cudnn"):
        used("flash", HOPPER)


@pytest.mark.parametrize("name", ["bert", "deberta", "vit", "llama"])
def test_a_model_refuses_cudnn_where_it_is_traced(name):
    """Which is before anything trains: the planner traces every program."""
    with pytest.raises(UserError, match=r"model\.attention=cudnn cannot be had: this device is no CUDA GPU"):
        jax.eval_shape(lambda: model_of(name)(*inputs_of(name), attention="cudnn"))


@pytest.fixture
def stand_in(monkeypatch):
    """cuDNN as if it could be had, for float32 too, with JAX's XLA attention given the same arguments. Counts calls."""
    calls, original = [], jax.nn.dot_product_attention

    def told(*args, implementation, **how):
        assert implementation == "cudnn"
        calls.append(how)
        return original(*args, implementation="xla", **how)

    def uses(asked, dtype, d_head, obstacles):
        return uses_cudnn(asked, jnp.bfloat16, d_head, obstacles, capability=lambda: HOPPER, version=(0, 12, 0))

    monkeypatch.setattr(jax.nn, "dot_product_attention", told)
    for module in (bert, decoder, vit):
        monkeypatch.setattr(module, "uses_cudnn", uses)
    return calls


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_cudnn_is_told_what_xla_is(name, stand_in):
    """Padding on every side, causal or not, grouped heads: the same output, and the same gradients."""
    model, (tokens, mask) = model_of(name), inputs_of(name)

    def loss(model, implementation):
        output = model(tokens, mask, attention=implementation)
        return jnp.square(seen(name, output, mask)).sum(), output

    runs = {
        how: jax.jit(jax.value_and_grad(functools.partial(loss, implementation=how), has_aux=True))
        for how in ("xla", "auto")
    }
    ((_, expected), slow), ((_, output), fast) = runs["xla"](model), runs["auto"](model)
    assert len(stand_in) == 1 and stand_in[0]["is_causal"] == (name == "llama")
    np.testing.assert_allclose(seen(name, output, mask), seen(name, expected, mask), atol=2e-5)
    for one, other in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1, float(jnp.abs(other).max())))


@pytest.mark.parametrize("name, why", [("gemma2", "softly caps"), ("gemma3", "look back differently far")])
def test_what_cudnn_cannot_do_is_xlas(name, why, stand_in):
    tokens, mask = inputs_of(name)
    jax.eval_shape(lambda: model_of(name)(tokens, mask, attention="auto"))
    assert not stand_in
    with pytest.raises(UserError, match=why):
        jax.eval_shape(lambda: model_of(name)(tokens, mask, attention="cudnn"))


def test_dropout_and_packed_sequences_are_xlas_and_so_is_decoding(stand_in):
    model, (tokens, mask) = model_of("llama"), inputs_of("llama")
    for why, how in {
        "drops out": {"key": jax.random.key(0)},
        "packed into one": {"segments": mask.astype(int)},
    }.items():
        with pytest.raises(UserError, match=why):
            jax.eval_shape(lambda how=how: model(tokens, mask, attention="cudnn", **how))
    cache = model.backbone.empty_cache(4, 12)
    jax.eval_shape(lambda: model(tokens, mask, attention="cudnn", cache=cache))
    assert not stand_in


def test_a_window_is_told_too(stand_in):
    q, k, v = (np.random.default_rng(i).normal(size=(2, 9, 2, 8)).astype(np.float32) for i in range(3))
    row, column = np.arange(9)[:, None], np.arange(9)
    mask = np.broadcast_to((column <= row) & (row - column < 4), (2, 1, 9, 9))
    front = Front.of(np.ones((2, 9), bool))
    seen_by = {how: decoder.View(mask, 0.0, how, front, True, 4).attend(q, k, v, None) for how in (False, True)}
    np.testing.assert_allclose(seen_by[True], seen_by[False], atol=1e-5)
    assert stand_in[0]["local_window_size"] == (3, 0)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("implementation", ["xla", "auto"])
def test_a_text_that_is_padding_alone_is_finite_and_harms_no_other(name, implementation, stand_in):
    model, (tokens, mask) = jax.tree.map(lambda leaf: leaf, model_of(name)), inputs_of(name)
    empty = mask.copy()
    empty[1] = False
    if name == "bert":
        model.pool = "first"  # a mean over no token is the head's matter

    def loss(model, mask):
        output = model(tokens, mask, attention=implementation)
        return jnp.square(output[:1]).sum() + 0 * output.sum(), output

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, whole), _ = step(model, mask)
    (_, output), grads = step(model, empty)
    assert bool(stand_in) == (implementation == "auto")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((output, grads)))
    np.testing.assert_allclose(output[0], whole[0], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_are_repeated_ones(kv_heads):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, heads, 4)).astype(np.float32) for heads in (6, kv_heads, kv_heads))
    mask = rng.random((2, 1, 5, 5)) < 0.7
    repeated = (np.repeat(x, 6 // kv_heads, axis=2) for x in (k, v))
    np.testing.assert_allclose(attention(q, k, v, mask), attention(q, *repeated, mask), atol=1e-6)


def test_a_front_moves_padding_behind_and_back():
    _, mask = inputs_of("bert")
    x = np.random.default_rng(0).normal(size=(*mask.shape, 3)).astype(np.float32)
    front = Front.of(mask)
    moved = front.enter(x)
    np.testing.assert_array_equal(front.lengths, mask.sum(-1))
    for row, own, length in zip(moved, mask, front.lengths, strict=True):
        np.testing.assert_array_equal(row[:length], x[(mask == own).all(-1).argmax()][own])
    np.testing.assert_array_equal(front.leave(moved), x)
    assert Front().enter(x) is x and Front().leave(x) is x
