"""Greedy and beam search here and in Hugging Face's transformers, token for token, on small random checkpoints."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity.test_decoders import CASES, save  # noqa: E402 (it needs torch)

from lora_jax.generate import Decoding, generate, left_pad  # noqa: E402
from lora_jax.weights.load import load_base  # noqa: E402

WORDS, LONGEST, NEW = 61, 21, 24
# Grouped queries and tied embeddings; learned positions; windows of 5 and 4 tokens, which most prompts exceed; q norms.
FAMILIES = ("llama-grouped-tied", "gpt2", "gpt-neox", "gemma2", "gemma3", "qwen3")
# Narrower, this random GPT-2 answers every prompt alike.
CHANGES = {"gpt2": {"n_positions": 64, "n_embd": 48}}
program = jax.jit(generate, static_argnums=3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Torch's threads cost more than they bring at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(a model of transformers, the same one here)"""
    kind, values = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save(folder, kind, values | CHANGES.get(request.param, {}))
    return theirs, load_base(str(folder), kind, head="causal").model


@pytest.fixture(scope="module")
def prompts():
    """20 prompts of 2 to 21 tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, WORDS, length).tolist() for length in range(2, LONGEST + 1)]


def expected(theirs, tokens, mask, decoding: Decoding):
    """What transformers answers, filled up to `new_tokens` with `pad`."""
    whole = theirs.generate(
        torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask).long(),
        do_sample=False,
        max_new_tokens=decoding.new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        eos_token_id=list(decoding.stop) or None,
        pad_token_id=decoding.pad,
    )
    answer = whole[:, tokens.shape[1] :].numpy()
    missing = decoding.new_tokens - answer.shape[1]
    return np.pad(answer, ((0, 0), (0, missing)), constant_values=decoding.pad)


def compare(pair, prompts, settings: dict) -> None:
    """The same answers, with as many stop tokens as it takes that some of them end early and some do not."""
    theirs, ours = pair
    order = np.random.default_rng(1).permutation(WORDS).tolist()
    few, many, early = 0, WORDS, np.zeros(0)
    while many - few > 1 and not 2 <= early.sum() <= 18:
        count = (few + many) // 2
        stop = tuple(order[:count])
        # Padding is a stop token, as is usual: transformers looks for n-grams in the padding too.
        decoding = Decoding(NEW, stop=stop, pad=stop[0], **settings)
        tokens, mask = left_pad(prompts, decoding.pad)
        answers = expected(theirs, tokens, mask, decoding)
        early = np.isin(answers[:, :-1], stop).any(1)
        few, many = (count, many) if early.sum() < 2 else (few, count)
    assert 0 < early.sum() < len(prompts)
    np.testing.assert_array_equal(np.asarray(program(ours, tokens, mask, decoding)), answers)
    assert len({row.tobytes() for row in answers}) > 5


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"beams": 4}, id="beam-4"),
        pytest.param({"beams": 10, "length_penalty": 0.9, "no_repeat_ngram": 4}, id="beam-10-paper"),
    ],
)
def test_every_token_of_20_prompts(pair, prompts, settings):
    compare(pair, prompts, settings)


@pytest.mark.parametrize("pair", ["qwen3"], indirect=True)
@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram": 3},
        {"beams": 4, "length_penalty": 0.0, "no_repeat_ngram": 2},
        {"beams": 3, "length_penalty": 2.0, "no_repeat_ngram": 3},
        {"beams": 5, "length_penalty": -1.0, "no_repeat_ngram": 5},
    ],
    ids=str,
)
def test_other_penalties_and_ngrams(pair, prompts, settings):
    compare(pair, prompts, settings)
