"""CIFAR-10 from a few records in the authors' binary format, and from archives of JPEG files."""

import io
import tarfile

import numpy as np
import pytest
from helpers.image_files import encoded, noise

from lora_jax.data.tasks import load_task
from lora_jax.data.tasks.cifar10.builder import LABELS
from lora_jax.errors import UserError

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def batch(n: int, seed: int) -> bytes:
    """Returns the records of n images: the class, then the planes of red, green and blue."""
    planes = noise(n, 3, 32, 32, seed=seed)
    return b"".join(bytes([i % 10]) + image.tobytes() for i, image in enumerate(planes))


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, private_cache):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def binary(folder):
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(batch(20, seed))
    return folder


def test_the_binary_version(binary):
    data = load_task("cifar10", binary)
    assert data.labels == LABELS and LABELS[3] == "cat"
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [9] * 10, "valid": [1] * 10, "test": [2] * 10}
    test = {image.tobytes(): label for image, label in zip(*arrays(data, "test"), strict=True)}
    expected = noise(20, 3, 32, 32, seed=5).transpose(0, 2, 3, 1)
    assert test == {image.tobytes(): i % 10 for i, image in enumerate(expected)}
    used = [image.tobytes() for name in ("train", "valid") for image in data.splits[name].pixels]
    assert len(set(used)) == 100


def arrays(data, name):
    return data.splits[name].pixels, data.splits[name].labels.tolist()


def test_the_packed_archive_is_the_same(binary):
    expected = load_task("cifar10", binary).fingerprint
    files = {f"cifar-10-batches-bin/{name}": (binary / name).read_bytes() for name in NAMES}
    for name in NAMES:
        (binary / name).unlink()
    (binary / "cifar-10-binary.tar.gz").write_bytes(packed({"cifar-10-batches-bin/readme.html": b"<html>"} | files))
    assert load_task("cifar10", binary).fingerprint == expected
    (binary / "cifar-10-binary.tar.gz").write_bytes(packed(files)[:-2000])
    with pytest.raises(UserError, match="is not a readable tar file in gzip"):
        load_task("cifar10", binary)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has 0 bytes; expected 3073 for each image"),
        (batch(2, 0)[:-1], "has 6145 bytes; expected 3073 for each image"),
        (batch(2, 0) + b"\x0a" + bytes(3072), "image 2 is of the class 10; expected 0 to 9"),
    ],
)
def test_malformed_batches_are_refused(binary, content, complaint):
    (binary / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"data_batch_2\.bin.*{complaint}"):
        load_task("cifar10", binary)


def jpegs(split: str, n: int) -> dict[str, bytes]:
    return {
        f"{split}/{label}/{i:04}.jpg": encoded(np.full((32, 32, 3), 10 * k + i, np.uint8), "JPEG")
        for k, label in enumerate(LABELS)
        for i in range(n)
    }


@pytest.fixture
def archives(folder):
    for split, n in {"train": 10, "test": 2}.items():
        (folder / f"{split}.tar.gz").write_bytes(packed(jpegs(split, n)))
    return folder


def test_archives_of_jpeg_files(archives):
    data = load_task("cifar10", archives)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [9] * 10, "valid": [1] * 10, "test": [2] * 10}
    for image, label in zip(*arrays(data, "test"), strict=True):
        assert image.max() - image.min() == 0 and image[0, 0, 0] // 10 == label


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"train/whale/1.jpg": b""}, r"train/whale/1\.jpg is in the folder 'whale'; expected one of airplane"),
        ({"train/cat/1.jpg": b"no"}, r"train/cat/1\.jpg is not a readable image"),
        ({"train/cat/1.jpg": encoded(noise(8, 9, 3), "JPEG")}, r"train/cat/1\.jpg has 9 x 8 pixels; expected 32 x 32"),
        ({"../cat/1.jpg": b""}, "refused, it has a member"),
    ],
)
def test_malformed_archives_are_refused(archives, files, complaint):
    (archives / "train.tar.gz").write_bytes(packed(jpegs("train", 10) | files))
    with pytest.raises(UserError, match=complaint):
        load_task("cifar10", archives)
