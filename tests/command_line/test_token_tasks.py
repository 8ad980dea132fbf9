"""Sweeps of the tasks that label tokens: words with tags, and masked texts."""

import pytest
from helpers.command_line import CommandLine, read, records
from helpers.token_tasks import write_masked_model, write_wnut17

SMALL = ("rank=2,4", "baseline=none", "eval_every=2", "task.buckets=[32]", "task.eval_examples=40")


@pytest.mark.slow
def test_tagged_words(command: CommandLine, tmp_path):
    words = write_wnut17(tmp_path / "words")
    done = command.sweep(tmp_path / "sweep", "task=wnut17", f"task.data_dir={words}", *SMALL, "lr=0.02", "steps=12")
    assert done.returncode == 0, done.stderr
    for rank in (2, 4):
        summary, lines = read(tmp_path / f"sweep/rank={rank}/summary.json"), records(tmp_path / f"sweep/rank={rank}")
        assert set(summary["test"]) == {"span_f1", "token_accuracy", "loss"}
        assert (summary["metric"], summary["select"]) == ("span_f1", "span_f1") and summary["pack"]["runs"] == 2
        scored = [record["valid/span_f1"] for record in lines if "valid/span_f1" in record]
        assert len(scored) == 6 and summary["valid_best"]["span_f1"] == max(scored)
    assert "span_f1" in (tmp_path / "sweep/report/table.csv").read_text()


@pytest.mark.slow
def test_masked_texts(command: CommandLine, tmp_path):
    model = write_masked_model(tmp_path / "masked", command.model)
    done = command.sweep(tmp_path / "sweep", "task=banking77_mlm", f"model.source={model}", *SMALL)
    assert done.returncode == 0, done.stderr
    for rank in (2, 4):
        summary = read(tmp_path / f"sweep/rank={rank}/summary.json")
        assert set(summary["test"]) == {"perplexity", "loss", "token_accuracy"}
        assert (summary["metric"], summary["select"]) == ("perplexity", "loss") and summary["pack"]["runs"] == 2
        assert summary["head_parameters"] == 0
    refused = command.sweep(tmp_path / "other", "task=banking77_mlm", *SMALL)
    assert refused.returncode == 2 and "cls.predictions" in refused.stderr
