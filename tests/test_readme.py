"""What README shows is what runs."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_answer_in_readme_is_the_answer(capsys):
    """SmolLM2's real weights."""
    _, code = snippets()
    exec(code, {})
    assert f"# {capsys.readouterr().out.strip()}" in code


def test_the_python_of_readme_runs(tiny_model, tmp_path, monkeypatch, capsys):
    code, _ = snippets()
    monkeypatch.chdir(tmp_path)
    small = f'"model.source={tiny_model}", "task.buckets=[16]", "batch=8", "steps=2"'
    names: dict = {}
    exec(code.replace('"steps=20"', small).replace("(2, 8, 32)", "(2, 8, 16)"), names)
    assert names["logits"].shape == (8, 77) and names["merged"].backbone.layers.attn.q.adapter is None
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if re.match(r"\d+ 0\.", line)] == [
        "2",
        "8",
        "16",
    ]


def test_the_commands_of_readme_name_what_is_there():
    commands = re.findall(r"python -m (experiments\.\w+)", README.read_text())
    assert {"experiments.sweep", "experiments.train", "experiments.report"} <= set(commands)
    for command in commands:
        assert (README.parent / command.replace(".", "/")).with_suffix(".py").exists(), command
