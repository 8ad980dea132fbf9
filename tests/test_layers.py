"""Imports run one way, from the top of the list below to its bottom, and what needs no JAX starts without it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages may import what stands below them, and nothing beside or above them.
LAYERS = (
    ("experiments", "hydra_plugins"),
    ("lora_jax.bench",),
    ("lora_jax.commands",),
    ("lora_jax.sweep",),
    ("lora_jax.paper",),
    ("lora_jax.analysis",),
    ("lora_jax.report",),
    ("lora_jax.evaluation",),
    ("lora_jax.train",),
    ("lora_jax.generate",),
    ("lora_jax.methods",),
    ("lora_jax.data",),
    ("lora_jax.metrics",),
    ("lora_jax.weights",),
    ("lora_jax.tracking",),
    ("lora_jax.records",),
    ("lora_jax.targets",),
    ("lora_jax.adapters",),
    ("lora_jax.delta",),
    ("lora_jax.kernels",),
    ("lora_jax.models",),
    ("lora_jax.config",),
    ("lora_jax.cache", "lora_jax.host", "lora_jax.statistics"),
    ("lora_jax.errors",),
)
DEPTH = {package: depth for depth, packages in enumerate(LAYERS) for package in packages}
HEAVY = {"jax", "matplotlib", "wandb", "tensorflow_datasets", "orbax", "grain", "tokenizers", "sacrebleu"}


def package_of(module: str) -> str | None:
    return next((package for package in DEPTH if module == package or module.startswith(f"{package}.")), None)


def imports_of(file: Path) -> set[str]:
    """Every module that `file` imports, also within functions and for type checkers."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files() -> dict[str, Path]:
    found = [path for top in ("lora_jax", "experiments", "hydra_plugins") for path in (ROOT / top).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


def test_imports_run_one_way():
    wrong, placed = [], 0
    for module, file in files().items():
        if module == "lora_jax":  # names where its members are, and imports none of them
            continue
        here = package_of(module)
        assert here, f"{module} stands in no layer"
        placed += 1
        for imported in imports_of(file):
            there = package_of(imported)
            if there and there != here and DEPTH[there] <= DEPTH[here]:
                wrong.append(f"{module} imports {imported}")
    assert placed > 100 and not wrong, "\n".join(sorted(set(wrong)))


def test_only_one_file_puts_arrays_on_a_device():
    users = {module for module, file in files().items() if "jax.device_put" in file.read_text()}
    # A base that is loaded by itself, outside a sweep, has JAX's default.
    users -= {"lora_jax.weights.load"}
    assert {module for module in users if not module.startswith("lora_jax.bench")} == {"lora_jax.train.sharding"}


def test_no_method_is_asked_for_by_name():
    for module, file in files().items():
        assert "method.name ==" not in file.read_text().replace("run.method.name == run.baseline", ""), module


def imported_by(code: str) -> set[str]:
    """Which of HEAVY a new process has imported at the end of `code`."""
    report = "import atexit, sys; atexit.register(lambda: print('\\nIMPORTED', *sys.modules, file=sys.stderr))\n"
    done = subprocess.run([sys.executable, "-c", report + code], cwd=ROOT, capture_output=True, text=True)
    return HEAVY & set(done.stderr.rpartition("IMPORTED")[2].split())


@pytest.mark.parametrize(
    "module",
    ["lora_jax", "lora_jax.config", "lora_jax.records", "lora_jax.report", "lora_jax.metrics", "lora_jax.paper.table"],
)
def test_what_reads_records_and_settings_starts_without_jax(module):
    assert not imported_by(f"import {module}")


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["rank=0"], ["rnak=8"], ["task=colaa"]])
def test_help_and_refusals_import_nothing_heavy(arguments):
    code = (
        "import os, runpy; os.environ['GLIBC_TUNABLES'] = ''\n"
        f"sys.argv[1:] = {arguments}\nrunpy.run_module('experiments.sweep', run_name='__main__', alter_sys=True)"
    )
    assert not imported_by(code)
