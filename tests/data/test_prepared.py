"""Prepared data are read as TFDS reads them, whichever way their records are decoded."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.prepared import SPLITS, open_builder, read_splits

TEXTS = ["Why?", "", "Grüße, 世界\n\0", "no, \udcff".encode(errors="surrogateescape")]
FEATURES = {
    "texts and classes": (
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["a", "b"])},
        [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)],
    ),
    "numbers": (
        {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.float32)},
        [{"text": text, "label": 0.1 * i} for i, text in enumerate(TEXTS)],
    ),
    "sequences": (
        {"text": tfds.features.Text(), "choices": tfds.features.Sequence(tfds.features.Text())},
        [{"text": text, "choices": TEXTS[:i]} for i, text in enumerate(TEXTS)],
    ),
}


@pytest.mark.parametrize("case", FEATURES)
def test_splits_are_what_tfds_reads(case, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "raw").write_text("raw")
    features, examples = FEATURES[case]

    class Builder(FolderBuilder, skip_registration=True):
        name = "made_up"

        def features(self):
            return features

        def splits(self):
            return {"train": examples * 5, "validation": examples, "test": examples[1:]}

    builder = open_builder(Builder, tmp_path, ["raw"])
    sources, splits = builder.as_data_source(), read_splits(builder)
    assert splits.keys() == SPLITS.keys()
    for name, split in SPLITS.items():
        assert len(splits[name]) == len(sources[split])
        for row, expected in zip(splits[name], sources[split], strict=True):
            assert row.keys() == expected.keys()
            for key in row:
                assert type(row[key]) is type(expected[key])
                np.testing.assert_array_equal(row[key], expected[key])
