"""outcomes.npz: what is written is read again, in little space, and what is damaged is refused."""

import io
import zipfile

import numpy as np
import pytest

from lora_jax.errors import UserError
from lora_jax.records.outcomes import OUTCOMES_FILE, Outcomes, read_outcomes, write_outcomes

DRAWS = np.random.default_rng(0)
FINGERPRINT = "0123456789abcdef" * 4


def outcomes(examples=13, classes=77):
    labels, predicted = DRAWS.integers(0, classes, (2, examples)).astype(np.int32)
    predicted[0] = classes
    per_example = {"accuracy": labels == predicted, "loss": DRAWS.normal(size=examples).astype(np.float32)}
    return Outcomes(FINGERPRINT, examples, per_example, labels, predicted, classes)


def regression(examples):
    labels = (DRAWS.integers(0, 26, examples) / 5).astype(np.float32)
    predicted = (labels + DRAWS.normal(size=examples)).astype(np.float32)
    return Outcomes(FINGERPRINT, examples, {"mean_squared_error": (labels - predicted) ** 2}, labels, predicted)


@pytest.mark.parametrize("written", [outcomes(), outcomes(16), regression(5)], ids=["13", "16", "values"])
def test_what_is_written_is_read(tmp_path, written):
    write_outcomes(tmp_path, written)
    read = read_outcomes(tmp_path)
    assert (read.fingerprint, read.examples, read.classes) == (FINGERPRINT, written.examples, written.classes)
    assert read.per_example.keys() == written.per_example.keys()
    pairs = [(read.per_example[name], values) for name, values in written.per_example.items()]
    for found, expected in [*pairs, (read.labels, written.labels), (read.predicted, written.predicted)]:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_outcomes_alone_need_no_labels(tmp_path):
    write_outcomes(tmp_path, Outcomes(FINGERPRINT, 3, {"accuracy": np.array([True, False, True])}))
    read = read_outcomes(tmp_path)
    assert (
        read.labels is None and read.predicted is None and read.per_example["accuracy"].tolist() == [True, False, True]
    )


def test_a_run_without_the_file_has_none(tmp_path):
    assert read_outcomes(tmp_path) is None


def test_ten_thousand_examples_are_small(tmp_path):
    accuracy = {"accuracy": DRAWS.random(10_000) < 0.9}
    sizes = {}
    for name, written in {
        "accuracy": Outcomes(FINGERPRINT, 10_000, accuracy),
        "classes": Outcomes(FINGERPRINT, 10_000, accuracy, *(outcomes(10_000).labels,) * 2, 77),
        "values": regression(10_000),
    }.items():
        write_outcomes(tmp_path, written)
        sizes[name] = (tmp_path / OUTCOMES_FILE).stat().st_size
    assert sizes["accuracy"] < 3_000 and sizes["classes"] < 40_000 and sizes["values"] < 90_000


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fingerprint": "abc"}, "fingerprint='abc'"),
        ({"examples": 12}, "accuracy is bool of shape"),
        ({"labels": None}, "both, or neither"),
        ({"labels": np.zeros(13)}, "labels is float64"),
        ({"labels": np.full(13, 77, np.int32)}, "labels: a class is not among the 77"),
        ({"predicted": np.full(13, 78, np.int32)}, "predicted: a class is not among the 77"),
        ({"per_example": {"accuracy": np.zeros(13, int)}}, "accuracy is int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Outcomes(**{**vars(outcomes()), **change})


def rewritten(content: bytes, **changes) -> bytes:
    with np.load(io.BytesIO(content)) as arrays:
        new = {**arrays, **changes}
    out = io.BytesIO()
    np.savez(out, **{name: array for name, array in new.items() if array is not None})
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(117)
    + b"\n"
)
DAMAGES = {
    "nothing": lambda content: b"",
    "text": lambda content: b"not an archive",
    "half": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: content[:80] + bytes([content[80] ^ 4]) + content[81:],
    "no examples": lambda content: rewritten(content, examples=None),
    "too few bits": lambda content: rewritten(content, **{"per_example/accuracy": np.zeros(1, np.uint8)}),
    "too many labels": lambda content: rewritten(content, labels=np.zeros(14, np.int32)),
    "an object": lambda content: rewritten(content, labels=np.array([{}] * 13, object)),
    "a huge shape": lambda content: zipped(**{"version.npy": HUGE}),
    "a bomb": lambda content: zipped(**{"version.npy": b"\0" * (2**28 + 1)}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(tmp_path, damage):
    write_outcomes(tmp_path, outcomes())
    path = tmp_path / OUTCOMES_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"outcomes\.npz is damaged: .*restore it from a copy"):
        read_outcomes(tmp_path)


def test_any_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    written = outcomes()
    write_outcomes(tmp_path, written)
    path = tmp_path / OUTCOMES_FILE
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            read = read_outcomes(tmp_path)
        except UserError:
            refused += 1
        else:
            for name, values in read.per_example.items():
                np.testing.assert_array_equal(values, written.per_example[name])
    assert refused > len(content) / 6


def test_a_newer_version_and_a_folder_are_named(tmp_path):
    write_outcomes(tmp_path, outcomes())
    path = tmp_path / OUTCOMES_FILE
    path.write_bytes(rewritten(path.read_bytes(), version=np.int64(2)))
    with pytest.raises(UserError, match=r"version is 2; this version of lora_jax reads version 1"):
        read_outcomes(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"outcomes\.npz cannot be read: Is a directory"):
        read_outcomes(tmp_path)
