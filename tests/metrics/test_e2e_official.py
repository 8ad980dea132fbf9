"""The five metrics of texts against figures that the official E2E scorer printed (e2e_official/README.md).

Where Java or the extra `e2e` is missing, the tests of METEOR, ROUGE-L and CIDEr assert that these are not computed.
"""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from lora_jax.errors import UserError
from lora_jax.metrics import METRICS, Predictions, caption, java, score

FOLDER = Path(__file__).parent / "e2e_official"
FIGURES = {  # as printed
    "careful": {"bleu": "0.4759", "nist": "6.5827", "meteor": "0.4299", "rouge_l": "0.7008", "cider": "3.5756"},
    "careless": {"bleu": "0.3446", "nist": "4.9229", "meteor": "0.3674", "rouge_l": "0.5806", "cider": "2.3925"},
}
PERCENT = {"bleu", "meteor", "rouge_l"}
NEED_JAVA = {"meteor", "rouge_l", "cider"}
CAN_RUN = java.unavailable() is None


@pytest.fixture(scope="module", autouse=True)
def starts(tmp_path_factory):
    """The log of a java on PATH that writes a line for every process that it serves."""
    folder = tmp_path_factory.mktemp("bin")
    log = folder / "starts"
    log.touch()
    with pytest.MonkeyPatch.context() as patch:
        if CAN_RUN:
            write_java(folder, f'case "$*" in *GatewayServer*) echo >> {log};; esac\nexec {java._find_java()} "$@"')
            patch.delenv("JAVA_HOME", raising=False)
            patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        forget()
        patch.setattr(caption, "PROCESS", java.JavaProcess())
        yield log
        forget()


def write_java(folder: Path, script: str) -> None:
    path = folder / "java"
    path.write_text(f"#!{shutil.which('sh')}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def forget() -> None:
    """Empties the caches of tokenized texts."""
    caption._texts.cache_clear()
    caption._references.cache_clear()


def read(system: str) -> Predictions:
    texts = (FOLDER / f"{system}.txt").read_text(encoding="utf-8").split("\n")[:-1]
    references = [block.split("\n") for block in (FOLDER / "references.txt").read_text("utf-8").strip().split("\n\n")]
    return Predictions(texts=texts, references=references)


def needs_java(name: str, predictions: Predictions) -> bool:
    """Returns whether to go on; where Java is missing, asserts that the metric is not computed."""
    if not CAN_RUN and name in NEED_JAVA:
        assert score(predictions, [name]) == {}
        return False
    return True


@pytest.mark.parametrize("name", ["bleu", "nist", "meteor", "rouge_l", "cider"])
@pytest.mark.parametrize("system", FIGURES)
def test_a_metric_is_what_the_official_scorer_prints(system, name):
    predictions = read(system)
    if needs_java(name, predictions):
        value = score(predictions, [name])[name]
        assert f"{value / 100 if name in PERCENT else value:.4f}" == FIGURES[system][name]


AWKWARD = [
    "",
    "  ",
    "a\nb\r\nc\u2028d",
    "tab\there",
    "a ||| b",
    "*NL*",
    "\U0001f600 café \ud83d",
    "<!-- opened",
    "closed -->",
    "\x00",
]


def test_awkward_texts_are_scored():
    predictions = Predictions(texts=AWKWARD, references=[["the pub", text] for text in AWKWARD])
    found = score(predictions, FIGURES["careful"])
    assert set(found) == set(FIGURES["careful"]) - (set() if CAN_RUN else NEED_JAVA)
    assert all(0 <= value < float("inf") for value in found.values())
    assert all(found[name] > 50 for name in PERCENT & set(found))  # each has itself among its references


def test_the_tokenizer_returns_a_line_for_each_text():
    if not needs_java("meteor", read("careful")):
        return
    assert caption._texts(tuple(AWKWARD)) == (
        *("", "", "a b c d", "tab here", "a | | | b", "* nl *", "café", "< opened", "closed >", ""),
    )
    assert caption._texts(("Don't pay £20-25 (or 1,000.50) at \"Zoë's\"...",)) == (
        "do n't pay # 20-25 -lrb- or 1,000.50 -rrb- at zoë 's",
    )


def test_threads_share_the_process():
    predictions = [Predictions(texts=[f"pub {i}"], references=[[f"the pub {i}"]]) for i in range(8)]
    if not needs_java("meteor", predictions[0]):
        return
    found: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: METRICS["rouge_l"].compute(predictions[i])}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), pytest.approx(100 * 2.44 * 2 / 3 / (2 / 3 + 1.44)))


def test_one_process_serves_all_runs_and_reads_the_references_once(starts):
    if not needs_java("meteor", read("careful")):
        return
    forget()
    for system in FIGURES:
        score(read(system), FIGURES[system])
    assert len(starts.read_text().splitlines()) == 1
    assert caption._references.cache_info().misses == 1


def test_a_process_that_ends_is_an_error_and_the_next_call_starts_another(starts):
    if not needs_java("meteor", read("careful")):
        return
    process = java.JavaProcess()
    assert process.tokenize(["A pub."]) == ["a pub ."]
    before = len(starts.read_text().splitlines())
    process._jvm._process.kill()
    process._jvm._process.wait()
    with pytest.raises(UserError, match="METEOR's Java process ended with status -9"):
        process.tokenize(["A pub."])
    assert process.tokenize(["A pub."]) == ["a pub ."]
    assert len(starts.read_text().splitlines()) == before + 1
    process._jvm.end()


# ---- machines that cannot run it


def test_without_java_the_three_are_not_computed(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("lora_jax.metrics._warned", set())
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: object())
    found = [score(read("careful"), FIGURES["careful"]) for _ in range(2)]
    assert [list(figures) for figures in found] == [["bleu", "nist"]] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "not computed: meteor, rouge_l, cider (no Java 8 or later on PATH or in JAVA_HOME)"
    ]


def test_without_the_extra_the_three_are_not_computed(monkeypatch, caplog):
    monkeypatch.setattr("lora_jax.metrics._warned", set())
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    assert list(score(read("careful"), FIGURES["careful"])) == ["bleu", "nist"]
    assert "pycocoevalcap and py4j not installed; pip install 'lora_jax[e2e]'" in caplog.text


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("""echo 'java version "1.7.0_80"' >&2""", "is Java 7, and METEOR needs Java 8 or later"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "does not run"),
        ("""echo 'openjdk version "1.8.0_392"' >&2""", None),
        ("""echo 'openjdk version "25" 2025-09-16' >&2""", None),
    ],
)
def test_java_8_or_later_is_fit(script, reason, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    write_java(tmp_path / "bin", script)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    path = java._find_java()
    assert path == str(tmp_path / "bin" / "java")
    assert java._unfit(path) == (reason and f"{path} {reason}")


def test_a_java_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    if not needs_java("meteor", read("careful")):
        return
    (tmp_path / "bin").mkdir()
    write_java(tmp_path / "bin", "echo 'Could not reserve enough space' >&2; exit 1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"METEOR's Java process did not start: Could not reserve enough space"):
        java.JavaProcess().tokenize(["a"])
