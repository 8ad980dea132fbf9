"""Bottleneck adapters: what they compute, where, from which start, and that runs of any size share a pack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, model_of
from helpers.method_runs import moved
from helpers.packed import assert_packed_equals_alone

from lora_jax.delta import graft
from lora_jax.errors import UserError
from lora_jax.methods import method_of
from lora_jax.models.attention import AttentionContext

METHODS = ["adapter_h", "adapter_p", "adapter_l", "adapter_d"]
SLOTS = {
    "adapter_h": ["after_attn", "after_mlp"],
    "adapter_p": ["after_mlp"],
    "adapter_l": ["after_block"],
    "adapter_d": ["after_mlp"],
}
STEPS = 20
RUNS = [
    {"method__bottleneck": 4, "lr": 1e-2, "seed": 3},
    {"method__bottleneck": 16, "method__layers": "1:", "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"method__bottleneck": 7, "method__layers": "0:2", "method__init": "normal", "lr": 5e-3, "optim__clip_norm": 0.1},
]
HEAD = 32 * 7 + 7
D = 32


def start_of(base, run):
    method = method_of(run.method)
    return method, method.init(base, run)


# ---- the start


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_its_slots(base, configure, name):
    method, start = start_of(base, configure(name))
    delta = method.materialise(start.params, start.constants)
    slots = [f"backbone/layers/{slot}/adapter" for slot in SLOTS[name]]
    assert sorted(delta) == [*slots, "head/bias", "head/kernel"]


@pytest.mark.parametrize("init, std", [("zero", 0.02), ("normal", 0.01)])
def test_kernels_are_drawn_as_adapter_hub_draws_them(base, configure, init, std):
    _, start = start_of(base, configure("adapter_h", method__bottleneck=64, method__init=init))
    for slot in SLOTS["adapter_h"]:
        kernels, biases = (start.params[f"backbone/layers/{slot}/adapter{part}"] for part in ("", "/bias"))
        drawn = [kernels.down] if init == "zero" else [kernels.down, kernels.up]
        cut = 0.8796 if init == "normal" else 1  # the deviation of a normal that is cut at two deviations
        for kernel in drawn:
            assert abs(np.std(kernel) / (cut * std) - 1) < 0.03
            assert init == "zero" or np.abs(kernel).max() <= 2 * std
        assert init == "normal" or not kernels.up.any()
        assert not biases.down.any() and not biases.up.any()
    drawn = [kernel for leaf in jax.tree.leaves(start.params) if leaf.ndim == 3 for kernel in leaf if kernel.any()]
    assert len({np.asarray(kernel).tobytes() for kernel in drawn}) == len(drawn)


def test_adapting_fewer_layers_changes_nothing_in_the_others(base, configure):
    _, whole = start_of(base, configure("adapter_l", method__init="normal"))
    _, part = start_of(base, configure("adapter_l", method__init="normal", method__layers="1:"))
    for path, value in part.params.items():
        for leaf, expected in zip(jax.tree.leaves(value), jax.tree.leaves(whole.params[path]), strict=True):
            if path.startswith("backbone/"):
                assert not leaf[0].any()
                leaf, expected = leaf[1:], expected[1:]
            np.testing.assert_array_equal(leaf, expected)


# ---- counts


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("adapter_h", {"method__bottleneck": 5}, 3 * 2 * (2 * D * 5 + 5 + D)),
        ("adapter_h", {"method__bottleneck": 5, "method__layers": "-1"}, 2 * (2 * D * 5 + 5 + D)),
        ("adapter_p", {"method__bottleneck": 5, "method__layers": "::2"}, 2 * (2 * D * 5 + 5 + D)),
        ("adapter_l", {"method__bottleneck": 1}, 3 * (2 * D + 1 + D + 2 * D)),
        ("adapter_d", {"method__bottleneck": 5, "method__drop": 2}, 2 * D * 5 + 5 + D),
        ("adapter_d", {"method__bottleneck": 5, "method__drop": 0}, 3 * (2 * D * 5 + 5 + D)),
        ("adapter_d", {"method__bottleneck": 5, "method__drop": 1, "method__layers": ":2"}, 2 * D * 5 + 5 + D),
    ],
)
def test_as_many_parameters_train_as_the_papers_formula_says(base, configure, name, settings, expected):
    run = configure(name, **settings)
    assert start_of(base, run)[1].trainable == expected + HEAD
    assert jax.eval_shape(lambda: start_of(base, run)[1]).trainable == expected + HEAD


# ---- packs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_h", "adapter_l", "adapter_d"])  # without drop, adapter_d is adapter_p
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure, name):
    drops = [{"method__drop": drop} if name == "adapter_d" else {} for drop in (0, 2, 1)]
    common = {"steps": STEPS, "batch": 8, "dtype": "float64"}
    runs = [configure(name, **run, **drop, **common) for run, drop in zip(RUNS, drops, strict=True)]
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


def test_placement_and_activation_are_compiled_in_and_nothing_else(configure):
    programs = {configure(name).program_key() for name in METHODS}
    assert len(programs) == 4
    assert configure("adapter_h", method__activation="silu").program_key() not in programs
    for change in ({"method__bottleneck": 8}, {"method__layers": "1:"}, {"method__init": "normal"}):
        assert configure("adapter_h", **change).program_key() in programs
    assert configure("adapter_d", method__drop=0).program_key() in programs


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_padding_has_no_gradient(configure, activation):
    base = model_of("bert")
    method, start = start_of(base, configure("adapter_l", method__bottleneck=3, method__activation=activation))
    params = {
        path: value.resize(5) if value.size and not path.startswith("head/") else value
        for path, value in moved(start.params, 0.3).items()
    }
    inputs = inputs_of("bert")
    grads = jax.grad(lambda params: graft(base, method.materialise(params, start.constants))(*inputs).sum())(params)
    path = "backbone/layers/after_block/adapter"
    assert not grads[path].down[..., 3:].any() and not grads[path].up[..., 3:, :].any()
    assert not grads[f"{path}/bias"].down[..., 3:].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))


def test_biases_and_norms_are_not_decayed(base, pack_of, configure):
    """Adam's step changes a parameter by at most lr = 0.001, and decay multiplies it by 1 - lr·100 = 0.9."""
    run = configure("adapter_l", steps=1, lr=1e-3, optim__weight_decay=100.0, optim__warmup=0.0)
    pack = pack_of(base, [run]).train(base, 1)
    before, after = pack.inits[0].params, pack.params(0)
    path = "backbone/layers/after_block/adapter"
    assert np.abs(after[f"{path}/norm/scale"].value - 1).max() < 2e-3
    np.testing.assert_allclose(after[path].down, 0.9 * before[path].down, atol=2e-3)


# ---- what they compute


def reference_h(h, y, residual, norm):
    """adapter-hub's Adapter in BertOutput under DoubleSeqBnConfig: before residual and norm."""
    return norm(y + h(y) + residual)


def reference_p(h, y, residual, norm):
    """Under SeqBnConfig: the residual is added and normed before h, and added and normed again after it."""
    return norm(h(norm(y + residual)) + y + residual)


@pytest.mark.parametrize(
    "name, reference, slots", [("adapter_h", reference_h, (0, 1)), ("adapter_p", reference_p, (1,))]
)
def test_a_bert_layer_is_adapter_hubs(configure, name, reference, slots):
    torch = pytest.importorskip("torch")
    base = model_of("bert")
    method, start = start_of(base, configure(name, method__bottleneck=5))
    params = moved(start.params, 0.3)
    adapted = graft(base, method.materialise(params, start.constants))
    block = jax.tree.map(lambda leaf: leaf[0], adapted.backbone.layers)
    x = np.random.default_rng(1).normal(size=(2, 6, 24)).astype(np.float32)
    context = AttentionContext(np.ones((2, 1, 1, 6), bool))
    mixed = np.array(block.attn(jnp.asarray(x), context, None))
    ours = block(x, context, None)

    def linear(kernel, bias):
        return lambda x: x @ torch.tensor(np.asarray(kernel)) + torch.tensor(np.asarray(bias))

    def apply(slot, y, residual, norm_module):
        scale, bias = (torch.tensor(np.asarray(p[...])) for p in (norm_module.scale, norm_module.bias))

        def norm(x):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, norm_module.epsilon)

        if ("after_attn", "after_mlp").index(slot) not in slots:
            return norm(y + residual)
        path = f"backbone/layers/{slot}/adapter"
        kernels, biases = (jax.tree.map(lambda leaf: leaf[0], params[p]) for p in (path, f"{path}/bias"))
        activation = {"adapter_h": torch.nn.functional.gelu, "adapter_p": torch.nn.functional.relu}[name]
        down, up = linear(kernels.down, biases.down), linear(kernels.up, biases.up)
        return reference(lambda x: up(activation(down(x))), y, residual, norm)

    hidden = apply("after_attn", torch.tensor(mixed), torch.tensor(x), block.attn_norm)
    mlp = block.mlp
    inner = torch.nn.functional.gelu(linear(mlp.up.kernel[...], mlp.up.bias[...])(hidden))
    theirs = apply("after_mlp", linear(mlp.down.kernel[...], mlp.down.bias[...])(inner), hidden, block.mlp_norm)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    plain = jax.tree.map(lambda leaf: leaf[0], base.backbone.layers)(x, context, None)
    assert np.abs(ours - plain).max() > 0.1


def test_adapter_l_adds_to_the_blocks_result(configure):
    base = model_of("gpt2")
    method, start = start_of(base, configure("adapter_l", method__bottleneck=5))
    adapter = jax.tree.map(
        lambda leaf: leaf[0],
        method.materialise(moved(start.params, 0.3), start.constants)["backbone/layers/after_block/adapter"],
    )
    x = np.random.default_rng(1).normal(size=(2, 6, 24)).astype(np.float32)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normal = normal * adapter.scale + adapter.bias
    expected = x + np.maximum(normal @ adapter.down + adapter.down_bias, 0) @ adapter.up + adapter.up_bias
    np.testing.assert_allclose(adapter(jnp.asarray(x), None, virtual=None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method_name", ["adapter_h", "adapter_p", "adapter_l"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_decoding_with_a_cache_equals_the_full_forward_pass(configure, name, method_name):
    base = model_of(name)
    method, start = start_of(base, configure(method_name, method__bottleneck=5, method__layers="1:"))
    model = graft(base, method.materialise(moved(start.params, 0.3), start.constants))
    tokens, mask = inputs_of(name)
    mask = mask.copy()
    mask[:, 9:] = True  # generated tokens
    full = np.asarray(jax.jit(lambda model: model(tokens, mask))(model))
    step = jax.jit(lambda model, tokens, mask, cache: model(tokens, mask, cache=cache))
    cache, pieces = model.backbone.empty_cache(4, 12), []
    for columns in (slice(0, 9), slice(9, 10), slice(10, 12)):
        logits, cache = step(model, tokens[:, columns], mask[:, columns], cache)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, 1)[mask], full[mask], atol=2e-5 * np.abs(full).max())


# ---- merging, files, refusals


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("adapter_h", {"method__layers": "7:"}, r"method\.layers='7:': selects none of the 3 layers of this model"),
        ("adapter_h", {"method__layers": "all"}, r"method\.layers='all': layers are a number or a slice such as 0:6"),
        ("adapter_h", {"method__layers": "0:3:0"}, r"method\.layers='0:3:0': layers are a number or a slice"),
        ("adapter_d", {"method__drop": 3}, r"method\.drop=3: must be less than 3, the layers of this model"),
        ("adapter_d", {"method__drop": 2, "method__layers": ":2"}, r"method\.layers=':2': method\.drop=2 drops all"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(base, configure, name, settings, message):
    run = configure(name, **settings)
    with pytest.raises(UserError, match=message):
        method_of(run.method).validate(base, run)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method__bottleneck": 0}, r"method\.bottleneck=0: must be"),
        ({"method__bottleneck": True}, r"method\.bottleneck=True: must be a number"),
        ({"method__activation": "tanh"}, r"method\.activation='tanh': must be"),
        ({"method__init": "uniform"}, r"method\.init='uniform': must be"),
        ({"method__drop": 1}, r"method\.drop"),
    ],
)
def test_bad_settings_are_refused(configure, settings, message):
    with pytest.raises(UserError, match=message):
        configure("adapter_h", **settings)
