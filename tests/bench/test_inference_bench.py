"""The bench of inference: a forward pass with each method's adapter beside the base's."""

import argparse
import json

import pytest

from lora_jax.bench import inference, record
from lora_jax.errors import UserError


@pytest.fixture
def measured(tiny_model, tmp_path):
    """Runs the command's parts on a tiny model. Returns the figures by method, and the page."""

    def measured(*methods: str):
        parser = argparse.ArgumentParser()
        inference.add_arguments(parser)
        chosen = ["--methods", *methods] if methods else []
        args = parser.parse_args([f"model.source={tiny_model}", "--batch", "2", "--tokens", "8", *chosen])
        page = record.write(inference.run(args), tmp_path, ["bench"])
        figures = json.loads(page.with_suffix(".json").read_text())["figures"]
        return {figure["method"]: figure for figure in figures}, page.read_text()

    return measured


@pytest.mark.slow
def test_each_method_is_measured_and_merges_where_it_can(measured):
    figures, page = measured("lora", "lora method.dora=true", "adapter_h", "prompt")
    assert {name: figure["merges"] for name, figure in figures.items()} == {
        "lora": True,
        "lora method.dora=true": True,
        "adapter_h": False,
        "prompt": False,
    }
    for figure in figures.values():
        assert 0 < figure["seconds"]["min"] <= figure["seconds"]["median"] <= figure["seconds"]["max"]
        assert figure["ratio"] > 0
        assert f"|`{figure['method']}`|" in page
    assert "2 texts of 8 random tokens, float32" in page


@pytest.mark.parametrize(
    "method, message",
    [
        ("lorra", "^method=lorra: must be one of adapter_d, .*, vera$"),
        ("lora method.dora=2", "method.dora=2: must be a valid boolean"),
        ("lora rnak=3", "^rnak: no such setting; did you mean rank"),
    ],
)
def test_settings_that_are_invalid_are_refused(measured, method, message):
    with pytest.raises(UserError, match=message):
        measured(method)
