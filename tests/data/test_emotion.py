"""Emotion from files in the authors' format, a few texts made for this test."""

import gzip

import pytest

from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")


def lines(word: str, n: int) -> str:
    return "".join(f"i feel {word} {i};{LABELS[i % 6]}\n" for i in range(n))


@pytest.fixture
def folder(tmp_path, private_cache):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "train.txt").write_text(lines("red", 18) + "twice the same;joy\ntwice the same;fear\n")
    (folder / "val.txt").write_text("\n" + lines("blue", 6))
    (folder / "test.txt").write_text(lines("green", 12))
    return folder


def test_splits_order_and_repeated_texts_stay_as_they_are(folder):
    data = load_task("emotion", folder)
    assert data.labels == LABELS
    train, valid, test = (data.splits[name] for name in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (20, 6, 12)
    assert test.texts == [f"i feel green {i}" for i in range(12)] and test.labels.tolist() == [*range(6)] * 2
    assert train.texts[-2:] == ["twice the same"] * 2 and train.labels.tolist()[-2:] == [1, 4]


def test_compressed_files_and_a_file_without_the_blank_line_are_the_same(folder):
    expected = load_task("emotion", folder).fingerprint
    (folder / "val.txt").write_text(lines("blue", 6))
    (folder / "train.txt.gz").write_bytes(gzip.compress((folder / "train.txt").read_bytes()))
    (folder / "train.txt").unlink()
    assert load_task("emotion", folder).fingerprint == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("i feel;well;joy", r"line 7: 3 columns, .*; expected 2: text, label"),
        ("i feel well", r"line 7: 1 columns, 'i feel well'; expected 2: text, label"),
        ("i feel well;hope", r"line 7: label='hope'; expected sadness, joy, love, anger, fear, surprise"),
        (" ;joy", r"line 7: text=' '; expected a text"),
    ],
)
def test_a_malformed_line_is_named(folder, line, complaint):
    (folder / "val.txt").write_text(lines("blue", 6) + line + "\n")
    with pytest.raises(UserError, match=rf"val\.txt, {complaint}"):
        load_task("emotion", folder)
