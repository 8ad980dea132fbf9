"""The E2E NLG task: its raw files, what is learned from them, and a sweep that learns to write."""

import csv
import functools
import hashlib
import http.server
import json
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records
from tokenizers import Tokenizer

from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.prompts import make_prompts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.tasks import load_task
from lora_jax.data.tasks.e2e.builder import prompt
from lora_jax.data.tokens import IGNORED, tokenize_for_generation
from lora_jax.errors import UserError
from lora_jax.metrics import Predictions, score

pytestmark = pytest.mark.usefixtures("private_cache")

PLACES = ("Mill", "Vault", "Eagle", "Crown", "Wok", "Plough")
FOODS = ("English", "Thai", "French")
NAMES = ("trainset.csv", "devset.csv", "testset_w_refs.csv")


def rows(places) -> list[tuple[str, str]]:
    """Two references each, the second with a run of spaces and a letter beyond ASCII."""
    return [
        (f"name[{place}], eatType[pub], food[{food}]", text)
        for place in places
        for food in FOODS
        for text in (f"{place} has {food} food.", f"Caf\u00e9  {place} is {food}.")
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    for name, places in zip(NAMES, (PLACES, PLACES[:2], PLACES[3:]), strict=True):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("mr", "ref"), *rows(places)])
    return folder


@pytest.fixture
def tokenizer(tiny_decoder) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_decoder / "tokenizer.json"))


def test_splits_are_those_of_the_files(raw):
    task = load_task("e2e", raw)
    assert task.labels == ()
    assert [len(task.splits[name]) for name in ("train", "valid", "test")] == [36, 12, 18]
    pairs = set(zip(task.splits["test"].texts, task.splits["test"].labels, strict=True))
    assert ("name : Crown | Type : pub | food : Thai", "Crown has Thai food.") in pairs
    assert ("name : Crown | Type : pub | food : Thai", "Caf\u00e9 Crown is Thai.") in pairs
    assert load_task("e2e", raw).fingerprint == task.fingerprint


def test_a_meaning_representation_is_written_as_the_papers_code_does():
    mr = "name[The Vaults], eatType[pub], priceRange[more than \u00a330], customer rating[low], familyFriendly[no]"
    assert prompt(mr) == (
        "name : The Vaults | Type : pub | price : more than \u00a330 | customer rating : low | family friendly : no"
    )


def test_the_published_archive_is_read_too(raw, tmp_path):
    with zipfile.ZipFile(tmp_path / "e2e-dataset.zip", "w") as archive:
        for name in NAMES:
            archive.write(raw / name, f"e2e-dataset/{name}")
    assert load_task("e2e", tmp_path).fingerprint == load_task("e2e", raw).fingerprint


def test_what_is_not_there_or_not_data_is_refused(raw, tmp_path):
    with pytest.raises(UserError, match=r"it has no trainset\.csv, devset\.csv, testset_w_refs\.csv"):
        load_task("e2e", tmp_path)
    (tmp_path / "e2e-dataset.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable zip"):
        load_task("e2e", tmp_path)
    (tmp_path / "e2e-dataset.zip").unlink()
    for name in NAMES:
        (tmp_path / name).write_text("mr,ref\nname[The Mill],A mill.\nno brackets,A pub.\n")
    with pytest.raises(UserError, match=r"line 3: mr='no brackets'; expected properties like name\[The Mill\]"):
        load_task("e2e", tmp_path)


def test_a_download_is_checked_and_kept(raw, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(raw))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    files = [RawFile(name, home, hashlib.sha256((raw / name).read_bytes()).hexdigest()) for name in NAMES]
    try:
        with pytest.raises(
            UserError, match=rf"devset\.csv has the SHA-256 {files[1].sha256}, expected 00; it is not used"
        ):
            raw_folder("e2e", None, [files[0], RawFile("devset.csv", home, "00")], "e2e.zip")
        with pytest.raises(
            UserError, match=r"cannot download .*/other\.csv .*404.*name their folder by task\.data_dir"
        ):
            raw_folder("e2e", None, [files[0], RawFile("other.csv", home, "00")], "e2e.zip")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        folder = raw_folder("e2e", None, files, "e2e.zip")
    finally:
        server.shutdown()
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    assert raw_folder("e2e", None, files, "e2e.zip") == folder  # the server is gone


def test_the_loss_is_on_the_reference_alone(tokenizer):
    encoded = tokenize_for_generation(Examples(["ab", "abcdef"], ["xyz", "qzz"]), tokenizer, 256, 8)
    ids = {letter: tokenizer.token_to_id(letter) for letter in "abcdefxyzq\u010a"}  # Ċ is a byte-level newline
    a, b, x, y, z, end = ids["a"], ids["b"], ids["x"], ids["y"], ids["z"], 256
    tokens, mask, labels, *_ = encoded.padded(np.array([0, 1]), 8, 0)
    assert tokens[0].tolist() == [a, b, ids["\u010a"], x, y, z, 0, 0]
    assert labels[0].tolist() == [IGNORED, IGNORED, x, y, z, end, IGNORED, IGNORED]
    # Seven tokens of text and newline leave room for one of the reference; what it is followed by is cut.
    assert tokens[1, 7] == ids["q"] and labels[1].tolist() == [IGNORED] * 6 + [ids["q"], ids["z"]]
    assert mask.sum(-1).tolist() == [6, 8]
    with pytest.raises(UserError, match=r"text 1 \('abcdef'\) has 7 tokens, and the longest bucket is 6"):
        tokenize_for_generation(Examples(["ab", "abcdef"], ["xyz", "qzz"]), tokenizer, 256, 6)


def test_batches_carry_a_label_for_each_token(tokenizer):
    texts = [f"text {i}" for i in range(10)]
    encoded = tokenize_for_generation(Examples(texts, [f"reference {i * '!'}" for i in range(10)]), tokenizer, 256, 32)
    drawn = TrainBatches(encoded, batch=4, buckets=(20, 32), seeds=(0, 1))[0]
    assert drawn.tokens.shape == drawn.labels.shape == drawn.mask.shape == (2, 4, drawn.tokens.shape[-1])
    shifted = (drawn.labels[..., :-1] != IGNORED) & (drawn.labels[..., :-1] != 256)
    assert (drawn.labels[..., :-1][shifted] == drawn.tokens[..., 1:][shifted]).all() and shifted.any()
    last = EvalBatches(encoded, batch=4, buckets=(32,))[2]  # ten examples: two of its rows only fill it up
    labels = last.batch.labels
    assert (labels[last.weight == 0] == IGNORED).all() and (labels[last.weight == 1] != IGNORED).any(-1).all()


def test_prompts_are_distinct_with_all_their_references(tokenizer):
    given = make_prompts(Examples(["b", "a", "b"], ["1", "2", "3"]), tokenizer, 256)
    assert (given.texts, given.references) == (["b", "a"], [["1", "3"], ["2"]])
    assert given.tokens.shape == (2, 16) and given.mask.sum(-1).tolist() == [2, 2] and given.mask[:, -2:].all()
    ((tokens, _),) = given.batches(5)
    assert tokens.shape == (2, 16)
    assert [rows.tolist() for rows, _ in given.batches(1)] == given.tokens[:, None].tolist()
    assert make_prompts(Examples(["b", "a", "b"], ["1", "2", "3"]), tokenizer, 256, 1).texts == ["b"]


@pytest.mark.smoke
def test_a_sweep_that_writes(command: CommandLine, tiny_decoder, raw, tmp_path):
    """Two ranks and full fine-tuning learn to end a text; what they write and its BLEU are left in the folders."""
    asked = ["model=smollm2_135m", f"model.source={tiny_decoder}", "task=e2e", f"task.data_dir={raw}"]
    short = ["task.buckets=[80]", "task.decode.new_tokens=12", "steps=12", "eval_every=6", "eval_batch=8"]
    done = command.sweep(tmp_path / "sweep", *asked, *short, "rank=2,4", "lr=3e-2")
    assert done.returncode == 0, done.stderr
    assert "generating 2 x 9 test texts" in done.stdout and "test bleu" in done.stdout
    for name in ("rank=2", "rank=4", "method=full"):
        folder = tmp_path / "sweep" / name
        summary, lines = read(folder / "summary.json"), records(folder)
        texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
        assert [len(t["references"]) for t in texts] == [2] * 9
        predictions = Predictions(texts=[t["text"] for t in texts], references=[t["references"] for t in texts])
        assert summary["test"]["bleu"] == pytest.approx(score(predictions, ["bleu"])["bleu"])
        assert summary["metric"] == "bleu" and set(summary["valid_best"]) == {
            "step",
            "loss",
            "perplexity",
            "token_accuracy",
        }
        losses = {record["step"]: record["valid/loss"] for record in lines if "valid/loss" in record}
        assert summary["valid_best"]["loss"] == min(losses.values()) and list(losses) == [6, 12]
        assert losses[12] < losses[6] and summary["test"]["loss"] < 5.5  # log 257 = 5.55
    assert read(tmp_path / "sweep/rank=4/adapter/adapter.json")["config"]["rank"] == 4
