"""Properties of text generation on tiny random decoders."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.slow import sometimes
from tokenizers import Tokenizer, models, pre_tokenizers

from lora_jax.adapters import LowRank
from lora_jax.delta import graft, merge
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate, generate_text, left_pad, sample
from lora_jax.models import gemma, gpt2, llama
from lora_jax.models.causal import CausalLM
from lora_jax.models.options import ComputeOptions

VOCAB_SIZE = 29
NEW = 9


def random_model(backbone, *, seed: int = 0, spread: float = 0.5) -> CausalLM:
    """Returns a decoder with parameters ~ N(0, spread²), scales around 1, so that its logits are far from uniform."""
    rng = np.random.default_rng(seed)

    def fill(keys, leaf):
        noise = spread * rng.normal(size=leaf.shape).astype(np.float32)
        return jnp.asarray(noise + any(getattr(key, "name", None) == "scale" for key in keys))

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: CausalLM(backbone())))


def random_llama(vocab_size: int = VOCAB_SIZE) -> CausalLM:
    return random_model(lambda: llama.Llama(llama.LlamaConfig(vocab_size, 16, 24, 2, 4, num_key_value_heads=2)))


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return random_llama()


@pytest.fixture(scope="module")
def sliding() -> CausalLM:
    """A Gemma 2 whose first layer attends to 4 tokens."""
    config = gemma.Gemma2Config(VOCAB_SIZE, 16, 24, 2, 4, 2, head_dim=4, sliding_window=4, query_pre_attn_scalar=4)
    return random_model(lambda: gemma.Gemma(config))


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return left_pad([rng.integers(0, VOCAB_SIZE, n).tolist() for n in (7, 2, 5, 1)], 0)


@pytest.fixture(scope="module")
def deltas():
    """Three stacked deltas: LoRA of rank 2 on q and down."""
    rng = np.random.default_rng(5)
    paths = {"attn/q": (16, 16), "mlp/down": (24, 16)}

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        f"backbone/layers/{path}/adapter": LowRank(draw(3, 2, d_in, 2), draw(3, 2, 2, d_out))
        for path, (d_in, d_out) in paths.items()
    }


program = jax.jit(generate, static_argnums=3, static_argnames="options")


def run(model, prompts, decoding, key=None, **kwargs):
    return np.asarray(program(model, *prompts, decoding, key, **kwargs))


DECODINGS = {
    "greedy": Decoding(NEW, stop=(3,)),
    "beams": Decoding(NEW, beams=3, length_penalty=0.9, no_repeat_ngram=2, stop=(3, 5)),
    "sampled": Decoding(NEW, temperature=1.3, top_p=0.9, stop=(3,)),
}


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["model", "sliding"])
def test_greedy_search_takes_the_likeliest_token_of_the_full_forward_pass(kind, request, prompts):
    model = request.getfixturevalue(kind)
    answer = run(model, prompts, Decoding(NEW))
    tokens, mask = (
        np.concatenate([left, right], 1) for left, right in zip(prompts, (answer, answer >= 0), strict=True)
    )
    logits = np.asarray(jax.jit(lambda model: model(tokens, mask))(model))
    np.testing.assert_array_equal(answer, logits[:, -NEW - 1 : -1].argmax(-1))
    assert len(np.unique(answer)) > 3


def test_a_wide_beam_search_finds_the_best_of_all_sequences():
    vocab_size, new = 5, 3
    model = random_llama(vocab_size)
    tokens = np.array([[1, 2, 4], [0, 3, 3]], np.int32)
    answer = run(model, (tokens, tokens >= 0), Decoding(new, beams=vocab_size ** (new - 1)))
    every = np.array(list(itertools.product(range(vocab_size), repeat=new)), np.int32)
    for prompt, row in zip(tokens, answer, strict=True):
        whole = np.concatenate([np.tile(prompt, (len(every), 1)), every], 1)
        logits = jax.jit(lambda model, tokens: model(tokens, tokens >= 0))(model, whole)
        log_probs = jax.nn.log_softmax(logits)[:, 2:-1]
        total = np.take_along_axis(np.asarray(log_probs), every[..., None], 2).sum((1, 2))
        np.testing.assert_array_equal(row, every[total.argmax()])
        greedy = run(model, (prompt[None], prompt[None] >= 0), Decoding(new))[0]
        assert total[(every == greedy).all(1)] <= total.max()


@pytest.mark.parametrize(
    ("kind", "name"), [("model", "greedy"), ("model", "sampled"), ("sliding", "greedy"), ("sliding", "beams")]
)
def test_padding_on_either_side_changes_nothing(kind, name, request, prompts):
    model, key = request.getfixturevalue(kind), jax.random.key(0)
    expected = run(model, prompts, DECODINGS[name], key)
    tokens, mask = prompts
    further = tuple(np.pad(x, ((0, 0), (3, 0)), constant_values=fill) for x, fill in ((tokens, 11), (mask, False)))
    np.testing.assert_array_equal(run(model, further, DECODINGS[name], key), expected)
    shifts = mask.shape[1] - mask.sum(1)
    right = tuple(np.stack([np.roll(row, -n) for row, n in zip(x, shifts, strict=True)]) for x in (tokens, mask))
    assert right[1][:, 0].all()
    np.testing.assert_array_equal(run(model, right, DECODINGS[name], key), expected)


@pytest.mark.smoke
@pytest.mark.parametrize("name", sometimes(DECODINGS, "greedy", "beams"))
def test_packed_adapters_generate_what_each_does_alone_grafted_or_merged(name, model, prompts, deltas):
    decoding, key = DECODINGS[name], jax.random.key(1)

    @jax.jit
    def packed(model, deltas):
        return jax.vmap(lambda delta: generate(graft(model, delta), *prompts, decoding, key))(deltas)

    together = np.asarray(packed(model, deltas))
    assert len({row.tobytes() for row in together}) == 3
    ends = [np.isin(run, decoding.stop).any(1) for run in together]
    assert np.ptp([end.sum() for end in ends]) > 0  # so they do not end at the same step
    for i, expected in enumerate(together):
        delta = jax.tree.map(lambda leaf, i=i: leaf[i], deltas)
        np.testing.assert_array_equal(run(graft(model, delta), prompts, decoding, key), expected)
        np.testing.assert_array_equal(run(merge(model, delta), prompts, decoding, key), expected)


def test_a_row_ends_at_its_stop_token_and_changes_no_other(model, prompts):
    free = run(model, prompts, Decoding(NEW, pad=1))
    stop = int(free[0, 3])
    stopped = run(model, prompts, Decoding(NEW, stop=(stop, VOCAB_SIZE - 1), pad=1))
    for row, whole in zip(stopped, free, strict=True):
        ends = np.flatnonzero(np.isin(whole, (stop, VOCAB_SIZE - 1)))
        length = ends[0] + 1 if len(ends) else NEW
        np.testing.assert_array_equal(row, np.where(np.arange(NEW) < length, whole, 1))
    assert (stopped[0, 4:] == 1).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_loop_ends_when_the_last_row_does(packed, model, prompts, deltas, monkeypatch):
    calls = []
    extend = sample.extend

    def counted(*args):
        jax.debug.callback(lambda: calls.append(1))
        return extend(*args)

    monkeypatch.setattr(sample, "extend", counted)
    pack = deltas if packed else jax.tree.map(lambda leaf: leaf[:1], deltas)
    every = jax.vmap(lambda delta, decoding: generate(graft(model, delta), *prompts, decoding), in_axes=(0, None))
    free = np.asarray(jax.jit(every, static_argnums=1)(pack, Decoding(NEW)))
    assert len(calls) == NEW - 1
    stop = tuple(sorted(set(free[:, :, 2].ravel().tolist())))  # every row has ended after three tokens
    ends = np.isin(free, stop).argmax(-1)
    calls.clear()
    jax.block_until_ready(jax.jit(every, static_argnums=1)(pack, Decoding(NEW, stop=stop)))
    jax.effects_barrier()
    assert len(calls) == ends.max() <= 2


def test_no_ngram_occurs_twice(model, prompts):
    def repeated(tokens, n=2):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return len(grams) - len(set(grams))

    def answers(**settings):
        rows = run(model, prompts, Decoding(20, **settings)).tolist()
        unpadded = [tokens[mask].tolist() for tokens, mask in zip(*prompts, strict=True)]
        return list(zip(unpadded, rows, strict=True))

    assert any(repeated(answer) for _, answer in answers())
    for settings in ({}, {"beams": 3}):
        for prompt, answer in answers(no_repeat_ngram=2, **settings):
            assert repeated(prompt + answer) == repeated(prompt)
    for prompt, answer in answers(no_repeat_ngram=1):
        assert repeated(prompt + answer, 1) == repeated(prompt, 1)
    free = answers(no_repeat_ngram=1, no_repeat_prompt=False)
    assert not any(repeated(answer, 1) for _, answer in free)
    assert any(set(prompt) & set(answer) for prompt, answer in free)


@pytest.mark.parametrize(
    "cut", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.95}, {"temperature": 2.0, "top_k": 9, "top_p": 0.8}]
)
def test_sampled_tokens_follow_the_distribution(cut, model):
    decoding = Decoding(1, **{"temperature": 1.0} | cut)
    prompt, rows = np.array([[4, 1, 7]], np.int32), 6000
    logits = np.asarray(model(prompt, prompt >= 0))[0, -1].astype(np.float64) / decoding.temperature
    order = np.argsort(-logits)[: decoding.top_k or None]
    probability = np.exp(logits[order] - logits.max())
    probability /= probability.sum()
    order = order[: int((probability.cumsum() < decoding.top_p).sum()) + 1]
    expected = np.zeros(VOCAB_SIZE)
    expected[order] = probability[: len(order)] / probability[: len(order)].sum()

    many = np.repeat(prompt, rows, 0)
    sampled = run(model, (many, many >= 0), decoding, jax.random.key(2))
    got = np.bincount(sampled[:, 0], minlength=VOCAB_SIZE) / rows
    assert not got[expected == 0].any() and (expected > 0).sum() > 1
    # Twice the expected total variation between a distribution and `rows` samples from it.
    assert np.abs(got - expected).sum() / 2 < np.sqrt(2 * expected * (1 - expected) / np.pi / rows).sum()


def test_a_row_samples_the_same_alone_and_in_a_batch(model, prompts):
    decoding, key = Decoding(NEW, temperature=1.0), jax.random.key(4)
    together = run(model, prompts, decoding, key)
    for i, (tokens, mask) in enumerate(zip(*prompts, strict=True)):
        alone = run(model, (tokens[None], mask[None]), decoding, jax.random.fold_in(key, i)[None])
        np.testing.assert_array_equal(alone[0], together[i])
    same = tuple(np.repeat(x[:1], 4, 0) for x in prompts)
    assert len({row.tobytes() for row in run(model, same, decoding, key)}) == 4
    assert not np.array_equal(run(model, prompts, decoding, jax.random.key(5)), together)


def test_sampling_from_one_token_is_greedy(model, prompts):
    key, greedy = jax.random.key(0), run(model, prompts, Decoding(NEW, stop=(3,)))
    for cut in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        decoding = Decoding(NEW, **{"temperature": 1.0, "stop": (3,)} | cut)
        np.testing.assert_array_equal(run(model, prompts, decoding, key), greedy)


def test_each_shape_compiles_once(model, prompts):
    traces = []

    @jax.jit
    def answer(model, tokens, mask):
        traces.append(tokens.shape)
        return generate(model, tokens, mask, Decoding(2))

    tokens, mask = prompts
    assert answer(model, tokens, mask).shape == (4, 2)
    answer(merge(model, {}), (tokens + 1) % VOCAB_SIZE, ~mask | True)
    answer(model, tokens[:, 1:], mask[:, 1:])
    assert traces == [(4, 7), (4, 6)]


def test_options_reach_the_model_and_its_cache(model, prompts):
    half = run(model, prompts, Decoding(NEW), options=ComputeOptions(jnp.bfloat16, unroll=2))
    assert half.shape == (4, NEW) and (half == run(model, prompts, Decoding(NEW))).mean() > 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_tokens": 0}, "new_tokens=0: must be 1 or more"),
        ({"beams": 0}, "beams=0: must be 1 or more"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1: must be 0 or more"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0"),
        ({"temperature": float("nan")}, "temperature=nan: must be 0"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0.0: must be above 0 and at most 1"),
        ({"temperature": 1.0, "top_k": -2}, "top_k=-2: must be 0 or more"),
        ({"length_penalty": float("inf")}, "length_penalty=inf: must be a finite number"),
        ({"beams": 4, "temperature": 0.7}, "temperature=0.7: beam search does not sample; must be 0, or beams=1"),
        ({"top_k": 5}, "top_k=5: limits what is sampled from; must be 0, or temperature above 0"),
        ({"top_p": 0.5}, "top_p=0.5: limits what is sampled from"),
        ({"stop": (-1,)}, r"stop=\(-1,\): token ids must be 0 or more"),
    ],
)
def test_bad_settings_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        Decoding(**{"new_tokens": 4} | settings)


def test_settings_that_do_not_fit_the_model_are_errors(model, prompts):
    with pytest.raises(UserError, match=r"stop=\(3, 29\): token ids must be below the vocabulary's 29"):
        generate(model, *prompts, Decoding(4, stop=[3, VOCAB_SIZE]))
    with pytest.raises(UserError, match="pad=50256: token ids must be below"):
        generate(model, *prompts, Decoding(4, pad=50256))
    with pytest.raises(ValueError, match=r"temperature=0\.5 draws tokens: generate needs a key"):
        generate(model, *prompts, Decoding(4, temperature=0.5))
    short = random_model(lambda: gpt2.Gpt2(gpt2.Gpt2Config(VOCAB_SIZE, 16, 1, 2, n_positions=12)))
    assert run(short, prompts, Decoding(5)).shape == (4, 5)
    with pytest.raises(UserError, match="13 tokens of prompt and answer are more than GPT-2's n_positions=12"):
        generate(short, *prompts, Decoding(6))


def test_generate_text_continues_texts_up_to_a_stop_token(model, deltas):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    base = types.SimpleNamespace(model=model, tokenizer=tokenizer)
    texts = ["w4 w8 w15", "w16", "w23 w4"]
    prompts = left_pad([[4, 8, 15], [16], [23, 4]], 0)
    delta = jax.tree.map(lambda leaf: leaf[0], deltas)
    for grafted, merged in ((None, model), (delta, merge(model, delta))):
        free = run(merged, prompts, Decoding(NEW))
        stop = int(free[0, 4])
        expected = []
        for row in free.tolist():
            end = row.index(stop) if stop in row else NEW
            expected.append(" ".join(f"w{token}" for token in row[:end]))
        assert generate_text(base, texts, Decoding(NEW, stop=(stop,)), delta=grafted) == expected
        assert len(expected[0].split()) <= 4
    with pytest.raises(UserError, match="prompt '' has no token"):
        generate_text(base, ["w1", ""], Decoding(2))
