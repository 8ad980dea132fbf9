"""Examples of several texts: how they are encoded, and the tasks that embed texts, from a few records."""

import csv
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.glue_files import write_glue
from tokenizers import Tokenizer

from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.encoding import Limits, encode_tuples
from lora_jax.data.examples import Corpus, Examples
from lora_jax.data.pack_batches import PackBatches
from lora_jax.data.sentence_pairs import EncodedTuples, tokenize_tuples
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import load_task
from lora_jax.data.tokens import Encoded
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")


@pytest.fixture
def tokenizer(tiny_model) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


def encoded(*rows: list[int], labels: list[int] | None = None) -> Encoded:
    offsets = np.cumsum([0, *map(len, rows)])
    tokens = np.array(list(itertools.chain(*rows)), np.int32)
    return Encoded(tokens, offsets, np.array(labels or [0] * len(rows), np.int32), 8)


PAIRS = EncodedTuples((encoded([1], [2, 3], [4], labels=[5, 6, 7]), encoded([8, 9, 10], [11], [12])))


# ---- arrays


def test_the_texts_of_an_example_share_a_length():
    assert PAIRS.lengths.tolist() == [3, 2, 1] and len(PAIRS) == 3
    batch = PAIRS.padded(np.array([[1, 0]]), 4, 0)
    assert batch.tokens.tolist() == [[[[2, 3, 0, 0], [11, 0, 0, 0]], [[1, 0, 0, 0], [8, 9, 10, 0]]]]
    assert (batch.mask == (batch.tokens > 0)).all()
    assert batch.labels.tolist() == [[6, 5]] and batch.types is None


def test_a_row_that_fills_a_batch_up_has_a_token_in_every_text():
    batches = EvalBatches(PAIRS, batch=2, buckets=(2, 4))
    last = batches[len(batches) - 1]
    assert last.index.tolist() == [0, -1] and last.batch.tokens[1].tolist() == [[0] * 4] * 2
    assert last.batch.mask[1].tolist() == [[True, False, False, False]] * 2


def test_packs_have_batches_of_tuples():
    batches = PackBatches([TrainBatches(PAIRS, batch=2, buckets=(4,), seeds=(0, 1))], [(0, 1)])
    assert batches[0].tokens.shape == batches.example(4).mask.shape == (2, 2, 2, 4)


def test_texts_are_tokenised_one_by_one(tokenizer):
    examples = Examples(["my card"], np.zeros(1, np.int32), ["it is lost"], negatives=["a"])
    tuples = tokenize_tuples(examples, tokenizer, 4)
    for text, tokens in zip(("my card", "it is lost", "a"), tuples.texts, strict=True):
        special, *ids, end = [token for token in tokenizer.encode(text).ids if token]
        assert tokens[0].tolist() == [special, *ids[:2], end]


def test_documents_are_encoded_with_the_queries_that_are_scored(tokenizer):
    labels = np.zeros(3, np.int32)
    train = Examples(["a", "b", "c"], labels, ["d", "e", "f"])
    corpus = Corpus(["g h i j k l m n o", "p"], [(0,), (0, 1), (1,)])
    data = TaskData((), {"train": train, "valid": train, "test": train}, {"valid": corpus, "test": corpus})
    base = SimpleNamespace(tokenizer=tokenizer)
    tokens = encode_tuples(2, data, base, Limits(32, eval_examples=2))
    assert {name: len(split) for name, split in tokens.encoded.items()} == {"train": 3, "valid": 2, "test": 2}
    test = tokens.retrieval["test"]
    assert test.relevance.tolist() == [[1, 0], [1, 1]]
    assert test.documents.lengths.tolist() == [11, 3] and len(test.queries.texts) == 1
    assert max(tokens.buckets) >= 11
    with pytest.raises(ValueError, match="training examples of 2 texts; the objective reads 3"):
        encode_tuples(3, data, base, Limits(32, None))


# ---- data


def test_a_corpus_suits_every_query():
    for relevant in ([()], [(2,)], [(0, -1)]):
        with pytest.raises(ValueError, match=r"query 0: .* must be positions among 2 documents"):
            Corpus(["a", "b"], relevant)


def test_negatives_need_second_texts_and_are_taken_by_row():
    labels = np.zeros(2, np.int32)
    for pairs, negatives in ((None, ["c", "d"]), (["c", "d"], ["e"])):
        with pytest.raises(ValueError, match="negatives need second texts, and one negative for each example"):
            Examples(["a", "b"], labels, pairs, negatives=negatives)
    assert Examples(["a", "b"], labels, ["c", "d"], negatives=["e", "f"]).take([1]).negatives == ["f"]


def test_fingerprints_tell_negatives_and_documents_apart():
    def fingerprint(negative="c", documents=("d", "e"), relevant=(0,)):
        split = Examples(["a"], np.zeros(1, np.int32), ["b"], negatives=[negative])
        return TaskData((), {"test": split}, {"test": Corpus(list(documents), [relevant])}).fingerprint

    assert len({fingerprint(), fingerprint("x"), fingerprint(documents=("d", "x")), fingerprint(relevant=(1,))}) == 4


# ---- tasks


def test_scores_of_sts_b_are_from_0_to_1(tmp_path):
    train = [(f"A {i}.", f"B {i}.", f"{i % 6}.000") for i in range(60)]
    folder = write_glue("stsb", tmp_path / "raw", train, [("C.", "D.", "4.500"), ("E.", "F.", "0.000")])
    plain, data = load_task("stsb", folder), load_task("stsb_embedding", folder)
    for name, split in data.splits.items():
        assert (split.texts, split.pairs) == (plain.splits[name].texts, plain.splits[name].pairs)
        np.testing.assert_allclose(split.labels, plain.splits[name].labels / 5)
    assert data.splits["test"].labels.dtype == np.float32


def nli(prefix: str, n: int) -> list[tuple[str, str, str]]:
    labels = ("entailment", "neutral", "contradiction")
    return [(f"{prefix} {i}", f"{prefix} {i} {label}", label) for label in labels for i in range(n)]


def test_triplets_are_of_one_premise(tmp_path):
    more = [
        ("dog  0", "second entailed", "entailment"),
        ("Dog 0", "second contradicted", "contradiction"),
        ("dog 1", "third entailed", "entailment"),
        ("only", "entailed", "entailment"),
    ]
    folder = write_glue("mnli", tmp_path / "raw", nli("dog", 30) + more, nli("cat", 3))
    data = load_task("nli_triplets", folder)
    rows = {
        name: list(zip(split.texts, split.pairs, split.negatives, split.labels.tolist(), strict=True))
        for name, split in data.splits.items()
    }
    assert rows["test"] == [(f"cat {i}", f"cat {i} entailment", f"cat {i} contradiction", i) for i in range(3)]
    trained = rows["train"] + rows["valid"]
    assert len(rows["valid"]) == 3 and len(trained) == 31  # a tenth of the premises; one has two triplets
    both = [row[1:3] for row in trained if row[0] == "dog 0"] or [row[1:3] for row in trained if "og  0" in row[0]]
    assert both == [("dog 0 entailment", "dog 0 contradiction"), ("second entailed", "second contradicted")]
    assert len({row[3] for row in rows["train"]}) == len({row[0] for row in rows["train"]})
    corpus = data.corpora["test"]
    assert corpus.documents == [f"cat {i} entailment" for i in range(3)] and corpus.relevant == [(0,), (1,), (2,)]


def test_a_document_that_two_premises_entail_is_there_once(tmp_path):
    dev = [("cat 0", "An animal.", "entailment"), ("cat 0", "x", "contradiction")]
    dev += [("cat 1", "An animal.", "entailment"), ("cat 1", "y", "contradiction")]
    data = load_task("nli_triplets", write_glue("mnli", tmp_path / "raw", nli("dog", 30), dev))
    assert data.corpora["test"].documents == ["An animal."] and data.corpora["test"].relevant == [(0,), (0,)]


def test_a_split_without_triplets_is_refused(tmp_path):
    folder = write_glue("mnli", tmp_path / "raw", nli("dog", 30), [("cat", "x", "entailment")])
    with pytest.raises(UserError, match="task=nli_triplets: the test split has no premise with both an entailed"):
        load_task("nli_triplets", folder)


def write_banking(folder, train, test):
    folder.mkdir()
    (folder / "categories.json").write_text(json.dumps(["fees", "lost"]))
    for name, rows in (("train.csv", train), ("test.csv", test)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *rows])
    return folder


def questions(prefix: str, n: int) -> list[tuple[str, str]]:
    return [(f"{prefix} {intent} {i}?", intent) for i in range(n) for intent in ("fees", "lost")]


def test_questions_are_paired_within_their_intent(tmp_path):
    folder = write_banking(tmp_path / "raw", questions("Why", 30), [*questions("How", 3), ("why  FEES 1?", "fees")])
    data = load_task("banking77_retrieval", folder)
    train = data.splits["train"]
    assert len(train) == 54 and data.labels == ("fees", "lost")
    assert sorted(train.texts) == sorted(train.pairs) and len(set(train.texts)) == 54
    for text, pair, intent in zip(train.texts, train.pairs, train.labels, strict=True):
        assert text != pair and data.labels[intent] in text and data.labels[intent] in pair
    corpus, test = data.corpora["test"], data.splits["test"]
    assert len(corpus.documents) == len(set(corpus.documents)) == 40 and set(corpus.documents) <= set(train.texts)
    valid = data.splits["valid"].texts
    assert len(valid) == 6 and not set(valid) & set(train.texts)
    assert sorted(test.texts) == sorted(text for text, _ in questions("How", 3))  # the other is one to train on
    for intent, positions in zip(test.labels, corpus.relevant, strict=True):
        assert len(positions) == 20 and all(data.labels[intent] in corpus.documents[i] for i in positions)


def test_pairs_and_queries_do_not_depend_on_the_order_of_rows(tmp_path):
    def rows(folder, train, test):
        data = load_task("banking77_retrieval", write_banking(tmp_path / folder, train, test))
        train, test = data.splits["train"], data.splits["test"]
        return set(zip(train.texts, train.pairs, strict=True)), test.texts, data.corpora["test"]

    train, test = questions("Why", 30), questions("How", 3)
    one, other = rows("one", train, test), rows("other", train[::-1], test[::-1])
    assert one[:2] == other[:2]
    assert (one[2].documents, one[2].relevant) == (other[2].documents, other[2].relevant)


def test_questions_without_any_other_of_their_intent_are_refused(tmp_path):
    folder = write_banking(tmp_path / "raw", questions("Why", 30), [("Why fees 1?", "fees")])
    with pytest.raises(UserError, match="task=banking77_retrieval: the test split is empty; expected two different"):
        load_task("banking77_retrieval", folder)


def test_the_questions_in_this_repository():
    data = load_task("banking77_retrieval")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8995, "valid": 1000, "test": 1000}
    assert {len(corpus.documents) for corpus in data.corpora.values()} == {77 * 20}
