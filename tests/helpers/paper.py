"""Tiny models of the families of the paper's tables, and made-up raw files of their tasks."""

import csv
import shutil
from pathlib import Path

from helpers.glue_files import write_glue
from helpers.tiny_models import TINY, random_base

from lora_jax.weights.save import save_pretrained

WORDS = ("the", "a", "cat", "dog", "tree", "house", "runs", "sleeps", "eats", "near", "old", "red", "small", "and")
LABELS = {
    **dict.fromkeys(("cola", "sst2", "mrpc", "qqp"), ("0", "1")),
    **dict.fromkeys(("rte", "qnli"), ("entailment", "not_entailment")),
    "mnli": ("entailment", "neutral", "contradiction"),
    "stsb": ("0.0", "2.5", "5.0"),
}
FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B"}


def write_tasks(root: Path) -> Path:
    """Writes raw files of GLUE's tasks and of E2E below `root`, and returns it: 60 rows to train on, 24 to test on."""
    for task in LABELS:
        write_glue(task, root / "glue" / FOLDERS.get(task, task.upper()), _records(task, 60), _records(task, 24, 60))
    folder = root / "e2e_nlg"
    folder.mkdir(parents=True)
    for name, first in (("trainset.csv", 0), ("devset.csv", 60), ("testset_w_refs.csv", 72)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            rows = [(f"name[{_text(i, 2)}], food[{_text(i, 1)}]", f"{_text(i, 5)}.") for i in range(first, first + 12)]
            csv.writer(file).writerows([("mr", "ref"), *rows])
    return root


def write_models(folder: Path, tiny_model: Path, tiny_decoder: Path) -> dict[str, Path]:
    """Writes a tiny random model of each family, and returns their folders by the prefix of the recipes they suit."""
    long = {"max_position_embeddings": 600}
    wide = {"hidden_size": 512, "num_hidden_layers": 1, "intermediate_size": 64, "num_key_value_heads": 4}
    shapes = {
        "t2_roberta": ("roberta", long),
        "t2_deberta": ("deberta-v2", long),
        "t3_gpt2": ("gpt2", {"n_positions": 600}),
        # Ranks up to 1,024, and 512, need kernels as wide.
        "t18": ("gpt2", {"n_positions": 600, "n_embd": 1024, "n_layer": 1, "n_head": 4}),
        "t18_smollm2": ("llama", long | wide | {"head_dim": 128, "tie_word_embeddings": True}),
    }
    for name, (shape, sizes) in shapes.items():
        family, values = TINY[shape]
        head = "classifier" if name.startswith("t2") else "causal"
        source = tiny_model if name.startswith("t2") else tiny_decoder
        words = {"vocab_size": 30522 if name.startswith("t2") else 257}
        save_pretrained(folder / name, random_base(family, values | sizes | words, head))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (source / file).exists():
                shutil.copy(source / file, folder / name)
    return {name: folder / name for name in shapes} | {"t2_minilm": tiny_model, "t3_smollm2": tiny_decoder}


def model_for(recipe: str, models: dict[str, Path]) -> Path:
    """Returns the model that suits a recipe."""
    return models[max((prefix for prefix in models if recipe.startswith(prefix)), key=len)]


def _records(task: str, rows: int, first: int = 0) -> list[tuple[str, ...]]:
    texts = 1 if task in ("cola", "sst2") else 2
    labels = LABELS[task]
    return [
        (*(f"{task} {_text(i + part, 4)}" for part in range(texts)), labels[i % len(labels)])
        for i in range(first, first + rows)
    ]


def _text(index: int, words: int) -> str:
    """Returns a text of some words that no other index has."""
    return " ".join(WORDS[(index * 7 + place * (3 + index // 15)) % len(WORDS)] for place in range(words)) + f" {index}"
