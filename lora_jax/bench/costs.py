"""Fits the plan's model of a GPU (sweep/choices.py) to rows of the step bench, and writes it beside the plan's code.

python -m experiments.bench step --alone --plan lora_jax/bench/costs_gpu.yaml --rows ROWS
python -m experiments.bench costs ROWS
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.bench import record
from lora_jax.bench.cases import LoraJaxCase, parse_case
from lora_jax.bench.shapes import SHAPES
from lora_jax.bench.step_page import name_of
from lora_jax.bench.step_vs_peft import read
from lora_jax.errors import UserError
from lora_jax.kernels.choice import MAX_WIDTH
from lora_jax.records.plan import Gemm, Layers
from lora_jax.sweep.choices import COSTS, Compilation, DeviceCosts, Kernel, Workload

DESCRIPTION = "fits the plan's model of a GPU to rows of the step bench"
Row = dict[str, Any]
Way = tuple[Gemm, Kernel, Layers]
REFERENCE: Way = ("triton", "xla", "default")  # the compilation whose slowdown is 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", type=Path, nargs="+", help="files of rows that `bench step --alone` measured")
    parser.add_argument("--write", type=Path, default=COSTS["gpu"], help=f"the model ({COSTS['gpu'].name})")


def run(args: argparse.Namespace) -> record.Report:
    """Fits the model, and writes it.

    Raises:
      UserError: the rows are of several devices, or too few to fit a model.
    """
    rows = [row for path in args.rows for row in read(path) if "seconds" in row and row["case"]["side"] == "ours"]
    devices = sorted({row["device"] for row in rows})
    if len(devices) != 1:
        raise UserError(f"{args.rows[0]}: must have rows of one device, and has rows of {', '.join(devices) or 'none'}")
    costs = fit(rows, devices[0])
    args.write.write_text(costs.model_dump_json(indent=2) + "\n")
    return record.Report("costs", rows[0]["platform"], f"The plan's model of {devices[0]}", page(rows, costs), {})


def fit(rows: Sequence[Row], device: str) -> DeviceCosts:
    """Fits a model to rows.

    The time of a step is a sum of three costs (`DeviceCosts.step_seconds`), which are fitted to the rows of REFERENCE
    by least squares of relative errors, none below zero. The slowdown of another compilation, which all but products
    has, is the geometric mean of measured over fitted times. The time of compiling is fitted with one cost a program
    and one a layer in the loop.

    Raises:
      UserError: no row has the reference's compilation.
    """
    from scipy.optimize import nnls

    reference = [row for row in rows if way_of(row) == REFERENCE]
    dtypes = sorted({row["case"]["dtype"] for row in reference})
    if len(reference) < 1 + 2 * len(dtypes):
        raise UserError(
            f"{len(reference)} rows have gemm=triton kernel=xla in a loop: must be {1 + 2 * len(dtypes)} or more"
        )
    parts = [_parts(row, dtypes) / _seconds(row) for row in reference]
    weights, _ = nnls(np.array(parts), np.ones(len(parts)))
    fitted = dict(zip(_names(dtypes), weights.tolist(), strict=True))
    costs = DeviceCosts(
        measured=device,
        flops_per_second={dtype: 1 / max(fitted["flops", dtype], 1e-18) for dtype in dtypes},
        element_seconds={dtype: fitted["elements", dtype] for dtype in dtypes},
        layer_seconds=fitted["layers", ""],
        compilations=(),
    )
    compilations = []
    ways: list[Way] = sorted({way_of(row) for row in rows}, key=lambda way: (way != REFERENCE, way))
    for gemm, kernel, layers in ways:
        slowdown = [_slowdown(row, costs) for row in rows if way_of(row) == (gemm, kernel, layers)]
        compiled = [row for row in rows if way_of(row)[:2] == (gemm, kernel)]
        once, per_layer = _compile_seconds(compiled)
        compilations.append(
            Compilation(
                gemm=gemm,
                kernel=kernel,
                layers=layers,
                compile_seconds=once,
                layer_compile_seconds=per_layer,
                slowdown=1.0 if (gemm, kernel, layers) == REFERENCE else statistics.geometric_mean(slowdown),
            )
        )
    return DeviceCosts(**costs.model_dump(exclude={"compilations"}), compilations=tuple(compilations))


def way_of(row: Row) -> Way:
    """Returns how a row was compiled: what computed products, what applied pairs, and the layers."""
    case = row["case"]
    unrolled = case["unroll"] >= SHAPES[case["shape"]]["num_hidden_layers"] and case["remat"] == "none"
    return case["gemm"], work_of(row).kernel, "unrolled" if unrolled else "default"


def work_of(row: Row) -> Workload:
    """Returns the work of a row's step, as ``sweep/costs.py`` has it: FLOPs of rematerialisation are not counted."""
    case = parse_case(row["case"])
    assert isinstance(case, LoraJaxCase)
    config = SHAPES[case.shape]
    pallas = (
        case.kernel != "xla"
        and case.method == "lora"
        and case.dtype == "bfloat16"
        and config["hidden_size"] <= MAX_WIDTH
    )
    texts = case.runs * case.batch
    return Workload(
        steps={case.tokens: 1},
        flops=(row["flops"] + row["adapter_flops"]) / case.tokens,
        tokens=texts,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        unroll=case.unroll,
        dtype=case.dtype,
        kernel="pallas" if pallas else "xla",
        padding_fixed=False,
        unrolled_fits=True,
    )


def page(rows: Sequence[Row], costs: DeviceCosts) -> str:
    """Returns the page in Markdown: the model, and what it predicts for each row."""
    ways = {(way.gemm, way.kernel, way.layers): way for way in costs.compilations}
    model = [
        [*key, f"{way.slowdown:.2f}", f"{way.compile_seconds:.1f}", f"{way.layer_compile_seconds:.2f}"]
        for key, way in ways.items()
    ]
    fitted = []
    for row in rows:
        way, case = ways[way_of(row)], row["case"]
        predicted = costs.step_seconds(work_of(row), case["tokens"], way.slowdown)
        compiled = way.compile_seconds + way.layer_compile_seconds * case["unroll"]
        step = [f"{1e3 * _seconds(row):.1f}", f"{1e3 * predicted:.1f}", f"{predicted / _seconds(row):.2f}"]
        fitted.append([name_of(case), *step, f"{row['compile_seconds']:.1f}", f"{compiled:.1f}"])
    rates = ", ".join(
        f"{dtype} {rate / 1e12:.0f} TFLOP/s and {1e9 * costs.element_seconds[dtype]:.2f} ns an element"
        for dtype, rate in costs.flops_per_second.items()
    )
    return "\n".join(
        [
            f"A step takes {1e3 * costs.layer_seconds:.2f} ms a layer; {rates} of a layer's hidden state.",
            "A slowdown is that of all but the products.",
            "",
            record.table(["gemm", "kernel", "layers", "slowdown", "compile s", "a layer more"], model),
            "",
            "Each case was compiled alone.",
            "",
            record.table(["", "step ms", "model", "ratio", "compile s", "model"], fitted),
        ]
    )


def _names(dtypes: Sequence[str]) -> list[tuple[str, str]]:
    return [("layers", ""), *itertools.product(("flops", "elements"), dtypes)]


def _parts(row: Row, dtypes: Sequence[str]) -> np.ndarray:
    """Returns what each cost of `_names` is multiplied by in the time of a row's step."""
    work, tokens = work_of(row), row["case"]["tokens"]
    amounts = {
        ("layers", ""): work.layers,
        ("flops", work.dtype): work.flops * tokens,
        ("elements", work.dtype): work.tokens * tokens * work.layers * work.width,
    }
    return np.array([amounts.get(name, 0.0) for name in _names(dtypes)])


def _slowdown(row: Row, costs: DeviceCosts) -> float:
    """Returns the time of all but the products of a row's step, relative to `costs`; 0.1 at least."""
    work, tokens = work_of(row), row["case"]["tokens"]
    products = costs.step_seconds(work, tokens, slowdown=0.0)
    return max((_seconds(row) - products) / (costs.step_seconds(work, tokens) - products), 0.1)


def _compile_seconds(rows: Sequence[Row]) -> tuple[float, float]:
    """Returns the seconds of a program, and of each layer in the body of its loop, by least squares."""
    from scipy.optimize import nnls

    sizes = np.array([[1.0, row["case"]["unroll"]] for row in rows])
    if len(set(sizes[:, 1])) == 1:
        sizes[:, 1] = 0.0
    (once, per_layer), _ = nnls(sizes, np.array([row["compile_seconds"] for row in rows]))
    return round(float(once), 1), round(float(per_layer), 2)


def _seconds(row: Row) -> float:
    return float(row["seconds"]["median"])
