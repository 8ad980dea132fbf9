"""Images as examples and batches, and the task `images`, which reads a folder of the user's."""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from helpers.image_files import encoded, noise, write_classes
from PIL import Image

from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.image_builder import array_record, cut
from lora_jax.data.image_files import decode, squared
from lora_jax.data.images import EncodedImages, Images
from lora_jax.data.pack_batches import PackBatches
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError
from lora_jax.weights.preprocessing import Preprocessing

RAW = Preprocessing(None, 2, 1.0, (0.0,) * 3, (1.0,) * 3)  # gives the pixels back as they are
SCALED = Preprocessing((20, 20), 2, 1 / 255, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))


def images(n: int, side: int = 8, channels: int = 3) -> Images:
    return Images(noise(n, side, side, channels), np.arange(n, dtype=np.int32) % 3)


def drawn(split: EncodedImages, rows: list[list[int]], seeds: list[int], step: int = 0) -> np.ndarray:
    return split.drawn(np.array(rows), 1, 0, seeds=seeds, step=step).tokens


# ---- batches


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_images_are_preprocessed_as_the_checkpoint_says(channels):
    split = images(6, channels=channels)
    batch = EncodedImages(split, SCALED, ("crop", "flip")).padded(np.array([[4, 1], [0, 4]]), 1, 0)
    pictures = [Image.fromarray(split.pixels[i].squeeze()).convert("RGB") for i in (4, 1, 0, 4)]
    expected = [np.asarray(picture.resize((20, 20), Image.Resampling.BILINEAR)) / 255 for picture in pictures]
    expected = (np.array(expected) - SCALED.mean) / SCALED.std
    assert batch.tokens.dtype == np.float32 and batch.mask.all() and batch.mask.shape == (2, 2, 1)
    np.testing.assert_allclose(batch.tokens.reshape(4, 20, 20, 3), expected, atol=1e-6)
    assert batch.labels.tolist() == [[1, 1], [0, 1]] and batch.types is None
    assert channels == 3 or (np.ptp(batch.tokens * SCALED.std + SCALED.mean, axis=-1) < 1e-6).all()


def test_augmentation_depends_on_the_seed_the_step_and_the_place_alone():
    split = EncodedImages(images(50, 16), RAW, ("crop", "flip"))
    rows = np.arange(20).tolist()
    alone = drawn(split, [rows], [5], step=7)
    packed = drawn(split, [rows[::-1], rows, rows], [3, 5, 5], step=7)
    np.testing.assert_array_equal(packed[1], alone[0])
    np.testing.assert_array_equal(packed[2], alone[0])
    for other in (drawn(split, [rows], [6], step=7), drawn(split, [rows], [5], step=8)):
        assert (other != alone).any(axis=(0, 2, 3, 4)).sum() > 10  # images that differ
    # The same augmentation meets whatever image is at a place.
    white = EncodedImages(Images(np.full((50, 16, 16, 3), 255, np.uint8), split.labels), RAW, ("crop",))
    np.testing.assert_array_equal(drawn(white, [rows], [5]), drawn(white, [rows[::-1]], [5]))


def test_augmentation_is_pinned():
    """A resumed run must see the same images under another version of NumPy."""
    split = Images(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), np.zeros(1, np.int32))
    pixels = drawn(EncodedImages(split, RAW, ("crop", "flip")), [[0] * 6], [1], step=2)[0, :, 4, 4, 0]
    assert pixels.astype(int).tolist() == [35, 42, 36, 34, 43, 26]  # 36 is neither moved nor mirrored


def test_crop_moves_by_an_eighth_and_flip_mirrors_half():
    split = images(2, 16)
    rows = [[0] * 200]
    cropped = drawn(EncodedImages(split, RAW, ("crop",)), rows, [0])[0]
    wide = np.pad(split.pixels[0], [(2, 2), (2, 2), (0, 0)])
    windows = {wide[i : i + 16, j : j + 16].tobytes() for i in range(5) for j in range(5)}
    assert {image.astype(np.uint8).tobytes() for image in cropped} == windows
    flipped = drawn(EncodedImages(split, RAW, ("flip",)), rows, [0])[0]
    mirrored = (flipped == split.pixels[0][:, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == split.pixels[0]).all(axis=(1, 2, 3)) != mirrored).all() and 70 < mirrored.sum() < 130


def test_runs_see_the_same_images_alone_packed_and_resumed():
    split = EncodedImages(images(30), RAW, ("crop", "flip"))
    other = EncodedImages(images(17), RAW, ("crop",))
    alone = TrainBatches(split, batch=4, buckets=(1,), seeds=[9])
    packed = PackBatches(
        [
            TrainBatches(other, batch=4, buckets=(1,), seeds=[9, 1]),
            TrainBatches(split, batch=4, buckets=(1,), seeds=[9]),
        ],
        [[0, 2], [1]],
    )
    assert packed.lengths() == (1,) and alone.steps_per_epoch == 7
    for step in (13, 2):  # of two epochs, in any order
        np.testing.assert_array_equal(packed[step].tokens[1], alone[step].tokens[0])
        assert packed[step].tokens.shape == (3, 4, 8, 8, 3) and packed[step].mask.shape == (3, 4, 1)
        np.testing.assert_array_equal(packed[step].labels[1], alone[step].labels[0])


def test_evaluation_sees_every_image_once_as_it_is():
    split = images(7)
    batches = EvalBatches(EncodedImages(split, RAW, ("crop", "flip")), batch=3, buckets=(1,))
    assert len(batches) == 3 and batches.lengths() == (1,)
    pixels = batches.restore([batches[i].batch.tokens for i in range(3)])
    np.testing.assert_array_equal(pixels, split.pixels)
    last = batches[2]
    assert last.weight.tolist() == [1, 0, 0] and not last.batch.tokens[1:].any() and last.batch.mask.all()


# ---- examples


def test_fingerprints_of_images_change_with_pixels_labels_and_shape():
    split = images(4)

    def fingerprint(pixels, labels):
        return TaskData(("a", "b", "c"), {"train": Images(pixels, labels)}).fingerprint

    changed = split.pixels.copy()
    changed[3, 0, 0, 0] ^= 1
    prints = [
        fingerprint(split.pixels, split.labels),
        fingerprint(changed, split.labels),
        fingerprint(split.pixels, split.labels[::-1].copy()),
        fingerprint(split.pixels.reshape(4, 4, 16, 3), split.labels),
    ]
    assert len(set(prints)) == 4 and fingerprint(split.pixels.copy(), split.labels) == prints[0]
    assert split.take([2, 0]).labels.tolist() == [2, 0] and len(split.scored(2)) == 2
    np.testing.assert_array_equal(split.take([2]).pixels[0], split.pixels[2])


def test_fingerprints_of_texts_are_as_they_were():
    splits = {
        "train": Examples(["a", "b"], np.array([0, 1], np.int32), ["c", "d"]),
        "test": Examples(["a"], ["x"], None, [("x", "y")]),
    }
    content = [["test", ["a"], ["x"], [["x", "y"]]], ["train", ["a", "b"], [0, 1], ["c", "d"]]]
    expected = hashlib.sha256(json.dumps(["n", "p"]).encode() + b"".join(json.dumps(c).encode() for c in content))
    assert TaskData(("n", "p"), splits).fingerprint == expected.hexdigest()


def test_a_cut_split_is_a_tenth_of_each_class_whatever_the_order():
    pixels = noise(60, 2, 2, 1)
    pixels[1] = pixels[0]  # copies are in one split
    records = [array_record(image, "ab"[i % 3 == 0]) for i, image in enumerate(pixels)]
    rest, held_out = cut(records)
    assert len(rest) + len(held_out) == 60
    assert sum(record.label == "b" for record in held_out) == 2
    digests = {record.digest() for record in held_out}
    assert not digests & {record.digest() for record in rest}
    assert {record.digest() for record in cut(records[::-1])[1]} == digests


# ---- files


def test_images_are_decoded_upright_in_rgb_and_squared():
    pixels = noise(6, 10, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(buffer.getvalue(), "x")), np.rot90(pixels, -1))
    grey = decode(encoded(noise(5, 5), "BMP"), "x")
    assert grey.mode == "RGB" and grey.size == (5, 5)
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 18:42] = 255  # the middle square, and what its edges are blended with
    assert (squared(Image.fromarray(stripes), 10) == 255).all()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a readable image; expected an image in JPEG, PNG, WEBP, BMP"),
        (b"GIF89a" + bytes(20), "is not a readable image"),
        (encoded(noise(40, 40, 3))[:900], "is a damaged image"),
        (encoded(noise(40, 40, 3), "JPEG")[:900], "is a damaged image"),
        (encoded(np.zeros((4, 4), np.uint16)), "mode I;16; expected 8 bits a channel"),
    ],
    ids=["empty", "gif", "cut png", "cut jpeg", "16 bits"],
)
def test_malformed_files_are_refused(content, complaint):
    with pytest.raises(UserError, match=rf"^photo\.png .*{complaint}"):
        decode(content, "photo.png")


def test_images_with_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (40, 400):  # above once and twice as many, which Pillow treats differently
        with pytest.raises(UserError, match=r"photo\.png has more than 1000 pixels"):
            decode(encoded(noise(side, side, 3)), "photo.png")


# ---- the task


@pytest.fixture
def folder(tmp_path, private_cache):
    return tmp_path / "photos"


def test_published_splits_are_kept(folder):
    write_classes(folder / "train", {"cat": 3, "dog": 2})
    write_classes(folder / "validation", {"dog": 1}, seed=1)
    write_classes(folder / "test", {"dog": 1, "cat": 1}, seed=2)
    (folder / "train" / "cat" / ".hidden").write_text("no image")
    data = load_task("images", folder)
    assert data.labels == ("cat", "dog")
    assert {name: sorted(split.labels.tolist()) for name, split in data.splits.items()} == {
        "train": [0, 0, 0, 1, 1],
        "valid": [1],
        "test": [0, 1],
    }
    assert data.splits["train"].pixels.shape == (5, 224, 224, 3)
    before = data.fingerprint
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "dog" / "00.png")
    assert load_task("images", folder).fingerprint != before  # the name tells the class


def test_splits_are_cut_from_one_folder(folder):
    write_classes(folder, {"cat": 20, "dog": 10})
    splits = load_task("images", folder).splits
    counts = {name: np.bincount(split.labels, minlength=2).tolist() for name, split in splits.items()}
    assert counts == {"train": [16, 8], "valid": [2, 1], "test": [2, 1]}
    corners = {name: {tuple(image[0, 0]) for image in split.pixels} for name, split in splits.items()}
    assert len(set.union(*corners.values())) > 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda root: (root / "train" / "dog" / "0.png").write_bytes(b"text"), r"dog/0\.png is not a readable image"),
        (lambda root: (root / "train" / "dog" / "notes.txt").write_text("a"), r"dog/notes\.txt: expected only files"),
        (lambda root: (root / "train" / "empty").mkdir(), r"train/empty: the class has no image"),
        (lambda root: (root / "test" / "cow").mkdir(parents=True), r"test/cow: no class of the training images"),
        (
            lambda root: (root / "valid").mkdir(),
            r"there is valid/ beside train/; expected only train, validation, test",
        ),
        (lambda root: shutil.rmtree(root / "train" / "dog"), r"1 classes; expected a folder of images"),
        (lambda root: (root / "train" / "a.png").write_bytes(b""), r"train/a\.png: a file beside the folders"),
        (lambda root: (root / "train" / "a\nb").mkdir(), "printable letters only"),
        (lambda root: shutil.rmtree(root), "there is no such folder"),
    ],
)
def test_other_folders_are_refused_by_name(folder, change, complaint):
    write_classes(folder / "train", {"cat": 10, "dog": 10})
    change(folder)
    with pytest.raises(UserError, match=complaint):
        load_task("images", folder)


def test_few_images_and_no_folder_are_refused(folder):
    write_classes(folder, {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="too few rows, the test split has no example"):
        load_task("images", folder)
    with pytest.raises(UserError, match=r"task=images: needs task\.data_dir"):
        load_task("images")
