"""WNUT-17 from files in CoNLL's format, a few sentences made for this test."""

import pytest

from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

# As in the corpus, what stands between sentences is a line of nothing or of a tab.
TRAIN = "Empire\tB-location\nState\tI-location\n.\tO\n\t\n\t\nESB\tB-location\n\t\n"
DEV = "Caf\u00e9\u2028x\tO\n\nObama\tB-person"
TEST = "\n\nthe\tO\r\nMill\tB-corporation\r\n\r\nIt\tO\n\nIt\tO\n"
NAMES = {"wnut17train.conll": TRAIN, "emerging.dev.conll": DEV, "emerging.test.annotated": TEST}


@pytest.fixture
def folder(tmp_path, private_cache):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, text in NAMES.items():
        (folder / name).write_bytes(text.encode())
    return folder


def sentences(data, split):
    """The words and tag names of each sentence."""
    found = data.splits[split]
    return [
        [(word, data.labels[tag]) for word, tag in zip(words, tags, strict=True)]
        for words, tags in zip(found.words, found.tags, strict=True)
    ]


def test_sentences_in_their_order(folder):
    data = load_task("wnut17", folder)
    assert data.labels[:3] == ("O", "B-corporation", "I-corporation") and len(data.labels) == 13
    assert sentences(data, "train") == [
        [("Empire", "B-location"), ("State", "I-location"), (".", "O")],
        [("ESB", "B-location")],
    ]
    assert sentences(data, "valid") == [[("Caf\u00e9\u2028x", "O")], [("Obama", "B-person")]]
    assert sentences(data, "test") == [[("the", "O"), ("Mill", "B-corporation")], [("It", "O")], [("It", "O")]]
    assert sentences(TaskData(data.labels, {"test": data.splits["test"].scored(1)}), "test") == [
        [("the", "O"), ("Mill", "B-corporation")]
    ]


def test_the_fingerprint_covers_words_tags_and_where_sentences_end(folder):
    def fingerprint():
        return load_task("wnut17", folder).fingerprint

    found = {fingerprint()}
    for text in ("Empire\tB-location\n", TRAIN.replace("I-", "B-"), TRAIN.replace("ESB", "esb"), TRAIN + "x\tO\n"):
        (folder / "wnut17train.conll").write_text(text)
        found.add(fingerprint())
    (folder / "wnut17train.conll").write_text(TRAIN.replace("\n\t", "\n"))
    assert len(found) == 5 and fingerprint() in found


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("the\tO\nMill O\n", r"line 2: 1 columns, 'Mill O'; expected 2, a word and a tag with a tab between them"),
        ("the\tO\n\nMill\tNN\tO\n", r"line 3: 3 columns, 'Mill\\tNN\\tO'; expected 2"),
        ("the\tO\nMill\n", r"line 2: 1 columns, 'Mill'"),
        ("the\tO\n\tO\n", r"line 2: word=''; expected a text"),
        ("the\tO\nMill\tB-mill\n", r"line 2: tag='B-mill'; expected O, B-corporation, I-corporation, "),
        ("the\tO\nMill\tB-corporation,B-location\n", r"line 2: tag='B-corporation,B-location'; expected O, "),
        ("the\t\n", r"line 1: tag=''; expected O"),
        ("\n\t\n \n", r" has no sentence; expected one or more"),
        ("", r" has no sentence"),
        ("the\tO\nM\0ill\tO\n", r"line 2: has a NUL"),
    ],
)
def test_a_malformed_line_is_named(folder, content, complaint):
    (folder / "emerging.dev.conll").write_text(content)
    with pytest.raises(UserError, match=rf"emerging\.dev\.conll,? ?{complaint.lstrip()}"):
        load_task("wnut17", folder)


def test_a_missing_file_is_named(folder):
    (folder / "emerging.dev.conll").unlink()
    with pytest.raises(UserError, match=r"it has no emerging\.dev\.conll; expected a folder with wnut17train\.conll"):
        load_task("wnut17", folder)


def test_every_word_has_a_tag_that_the_task_knows():
    with pytest.raises(ValueError, match="words and tags: must be one of each"):
        TaggedWords([["a", "b"]], [[0]])
    with pytest.raises(UserError, match="the train split has labels from 0 to 2; expected 0 to 1, of 2 classes"):
        TaskData(("O", "B-x"), {"train": TaggedWords([["a"], ["b"]], [[0], [2]])})
