"""Builds the page of the step bench from its rows: all cases, lora_jax compared with PEFT, and the gain of packing."""

import statistics
from collections.abc import Callable
from typing import Any

from lora_jax.bench import record
from lora_jax.bench.cases import case_to_json, parse_case

Row = dict[str, Any]


def page(rows: list[Row]) -> str:
    """Returns the page in Markdown. All rows are of one device, and utilisation is relative to their median ceiling."""
    limits = [row["ceiling"]["flops_per_second"] for row in rows if "ceiling" in row]
    limit = statistics.median(limits) if limits else None
    timed = [row for row in rows if "seconds" in row]
    parts = [_about(rows, limits), _cases(rows, limit), _compared(timed), _packing(timed), _sweeps(rows)]
    return "\n\n".join(part for part in parts if part)


def line(row: Row) -> str:
    """Returns a row as one line, which is printed after the measurement."""
    if "error" in row:
        return f"{name_of(row['case'])}: {row['error']}"
    if "wall_seconds" in row:
        return f"{name_of(row['case'])}: {row['wall_seconds']:.1f} s in total"
    figures = [f"compiled in {row['compile_seconds']:.1f} s"]
    if "seconds" in row:
        figures += [f"{_ms(row)} ms", f"{row['flops'] / row['seconds']['median'] / 1e12:.4g} TFLOP/s"]
    return f"{name_of(row['case'])}: {', '.join(figures)}, {_gigabytes(row, 'planned')} GB planned"


def name_of(case: Row) -> str:
    """Returns a name for a case, with the settings that differ from the defaults of its side."""
    default = case_to_json(parse_case({"side": case["side"]}))
    always_named = ("side", "method", "batch", "tokens", "runs")
    changed = [key for key in case if case[key] != default.get(key) and key not in always_named]
    settings = [f"{key}={_plain(case[key])}" for key in changed]
    runs = f"{case['runs']} × " if case.get("runs", 1) > 1 else ""
    method = {"lora": "LoRA", "full": "full"}[case["method"]]
    peft_side = "PEFT" if case["method"] == "lora" else "HF"
    side = peft_side if case["side"] == "peft" else "lora_jax"
    mode = f" {case['mode']}" if case["side"] == "peft" else ""
    return " ".join([f"{side}{mode}, {method}, {runs}{case['batch']} × {case['tokens']}", *settings])


def _about(rows: list[Row], limits: list[float]) -> str:
    devices = sorted({row["device"] for row in rows if "device" in row})
    text = [
        f"On {', '.join(devices)}. Random weights and tokens, AdamW, gradients clipped, LoRA on all linear layers of "
        "the blocks. A step is the median over 10 blocks of calls after a warm-up, minimum and maximum in brackets. "
        "FLOPs are the model's: 4 (LoRA) or 6 (full) a token for each weight of the blocks and of the output layer, "
        "and attention's products over the keys that are not masked. Lookups, LoRA's factors and rematerialisation do "
        "not count. All cases of a stage compile at the same time, so seconds of compilation are upper bounds.",
    ]
    if limits:
        first = f"{limits[0] / 1e12:.4g}"
        spread = f"{min(limits) / 1e12:.4g} to {max(limits) / 1e12:.4g}"
        text.append(f"The ceiling, a large bfloat16 product measured here: {first} TFLOP/s ({spread}).")
    return " ".join(text)


def _cases(rows: list[Row], limit: float | None) -> str:
    header = [
        "",
        "step ms",
        "tokens/s",
        "TFLOP/s",
        "of the ceiling",
        "compile s",
        "planned GB",
        "peak GB",
        "must be GB",
    ]
    table = []
    for row in rows:
        if "error" in row:
            table.append([name_of(row["case"]), row["error"].replace("\n", " ").replace("|", "/")[:120], *[""] * 7])
            continue
        cells = [""] * 4
        if "seconds" in row:
            flops_per_second = row["flops"] / row["seconds"]["median"]
            share = f"{100 * flops_per_second / limit:.1f}%" if limit else ""
            cells = [
                _ms(row),
                f"{_tokens(row) / row['seconds']['median']:,.0f}",
                f"{flops_per_second / 1e12:.4g}",
                share,
            ]
        compiled = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        memory = [_gigabytes(row, key) for key in ("planned", "peak", "predicted")]
        table.append([name_of(row["case"]), *cells, compiled, *memory])
    return record.table(header, table)


def _compared(timed: list[Row]) -> str:
    """Compares each row of lora_jax with each row of PEFT of the same shape and texts: the ratio of a run's step."""

    def workload(row: Row) -> tuple:
        return tuple(row["case"][key] for key in ("shape", "batch", "tokens"))

    lora_jax_rows = [row for row in timed if row["case"]["side"] == "ours"]
    peft_rows = [row for row in timed if row["case"]["side"] == "peft"]
    table = [
        [name_of(row["case"]), name_of(peft_row["case"]), f"{_ratio(row, peft_row):.2f}"]
        for row in lora_jax_rows
        for peft_row in peft_rows
        if workload(row) == workload(peft_row) and _method(row) == _method(peft_row)
    ]
    header = ["lora_jax", "PEFT", "PEFT / lora_jax, a run's step"]
    return "Compared with PEFT:\n\n" + record.table(header, table) if table else ""


def _packing(timed: list[Row]) -> str:
    """Compares the step of packs of each size with the fastest step of one run of the same texts."""
    lora_rows = [row for row in timed if row["case"]["side"] == "ours" and _method(row) == "lora"]
    groups: dict[tuple, list[Row]] = {}
    for row in lora_rows:
        groups.setdefault(tuple(row["case"][key] for key in ("shape", "base_storage", "batch", "tokens")), []).append(
            row
        )
    table = []
    for (shape, _, batch, tokens), group in groups.items():
        single = min((_median(row) for row in group if row["case"]["runs"] == 1), default=None)
        if single is None or len({row["case"]["runs"] for row in group}) == 1:
            continue
        for runs, row in sorted(_fastest(group, lambda row: row["case"]["runs"]).items()):
            cost = _median(row) / single
            cells = [f"{shape}, {batch} × {tokens}", str(runs), _ms(row), f"{cost:.2f}", f"{runs / cost:.2f}"]
            table.append([*cells, row["case"]["remat"], str(row["case"]["unroll"])])
    header = ["texts of a run", "runs", "step ms", "times one run's", "gain over one by one", "remat", "unroll"]
    return "Packing, the fastest setting of each size:\n\n" + record.table(header, table) if table else ""


def _sweeps(rows: list[Row]) -> str:
    """Compares whole sweeps with PEFT's of the same texts, whose remaining runs are counted as the measured ones."""
    sweeps = [row for row in rows if "wall_seconds" in row]
    table = []
    for row in sweeps:
        case, wall = row["case"], row["wall_seconds"]
        if case["side"] == "peft":
            continue
        table.append([name_of(case), f"{wall:.1f}", _parts(row), ""])
        for other in sweeps:
            peft_case = other["case"]
            same = all(peft_case[key] == case[key] for key in ("shape", "method", "batch", "tokens", "steps", "scored"))
            if peft_case["side"] == "peft" and same:
                once = other["parts"]["imports"]
                counted = once + (other["wall_seconds"] - once) * case["runs"] / peft_case["runs"]
                cells = [f"{counted:.0f}, from {peft_case['runs']} runs in {other['wall_seconds']:.1f}", _parts(other)]
                table.append([name_of(peft_case), *cells, f"{counted / wall:.1f}"])
    note = (
        "Sweeps, from the process's start to the last score. PEFT trains one run after another in one process; "
        "where it trained fewer runs than lora_jax, the others are counted as the mean of these."
    )
    return f"{note}\n\n{record.table(['', 'seconds', 'of these', 'PEFT / lora_jax'], table)}" if table else ""


def _parts(row: Row) -> str:
    return ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["parts"].items())


def _fastest(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, Row]:
    """Returns the row with the fastest step for each value of `key`."""
    best: dict[Any, Row] = {}
    for row in rows:
        if key(row) not in best or _median(row) < _median(best[key(row)]):
            best[key(row)] = row
    return best


def _ratio(row: Row, peft_row: Row) -> float:
    """Returns the time that PEFT takes for the runs of `row`, one after another, over that of the pack."""
    return row["case"]["runs"] * _median(peft_row) / _median(row)


def _method(row: Row) -> str:
    return row["case"]["method"]


def _median(row: Row) -> float:
    return row["seconds"]["median"]


def _tokens(row: Row) -> int:
    return row["case"].get("runs", 1) * row["case"]["batch"] * row["case"]["tokens"]


def _ms(row: Row) -> str:
    minimum, median, maximum = (1e3 * row["seconds"][key] for key in ("min", "median", "max"))
    return f"{median:.2f} ({minimum:.2f}–{maximum:.2f})"


def _gigabytes(row: Row, key: str) -> str:
    size = row.get("memory", {}).get(key)
    return "" if size is None else f"{size / 1e9:.2f}"


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
