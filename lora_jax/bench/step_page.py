"""The page of a step bench, from its rows: every case, ours beside PEFT's, what packing pays."""

import statistics
from collections.abc import Callable
from typing import Any

from lora_jax.bench import record
from lora_jax.bench.cases import described, parse_case

Row = dict[str, Any]


def page(rows: list[Row]) -> str:
    """Markdown. A utilisation is against the median ceiling of the rows, which all are of one device."""
    limits = [row["ceiling"]["flops_per_second"] for row in rows if "ceiling" in row]
    limit = statistics.median(limits) if limits else None
    timed = [row for row in rows if "seconds" in row]
    parts = [_about(rows, limits), _cases(rows, limit), _compared(timed), _packing(timed), _sweeps(rows, timed)]
    return "\n\n".join(part for part in parts if part)


def line(row: Row) -> str:
    """A row in short, as it is printed when it comes."""
    if "error" in row:
        return f"{name_of(row['case'])}: {row['error']}"
    if "wall_seconds" in row:
        return f"{name_of(row['case'])}: {row['wall_seconds']:.1f} s in all"
    found = [f"compiled in {row['compile_seconds']:.1f} s"]
    if "seconds" in row:
        found += [f"{_ms(row)} ms", f"{row['flops'] / row['seconds']['median'] / 1e12:.4g} TFLOP/s"]
    return f"{name_of(row['case'])}: {', '.join(found)}, {_gigabytes(row, 'planned')} GB planned"


def name_of(case: Row) -> str:
    """What tells a case from the default one of its side."""
    default = described(parse_case({"side": case["side"]}))
    own = [
        key for key in case if case[key] != default[key] and key not in ("side", "method", "batch", "tokens", "runs")
    ]
    told = [f"{key}={_plain(case[key])}" for key in own]
    runs = f"{case['runs']} × " if case.get("runs", 1) > 1 else ""
    what = {"lora": "LoRA", "full": "full"}[case["method"]]
    side = "PEFT" if case["side"] == "peft" and case["method"] == "lora" else "HF" if case["side"] == "peft" else "ours"
    mode = f" {case['mode']}" if case["side"] == "peft" else ""
    return " ".join([f"{side}{mode}, {what}, {runs}{case['batch']} × {case['tokens']}", *told])


def _about(rows: list[Row], limits: list[float]) -> str:
    devices = sorted({row["device"] for row in rows if "device" in row})
    text = [
        f"On {', '.join(devices)}. Random weights and tokens, AdamW, gradients clipped, LoRA on all linear layers of "
        "the blocks. A step is the median over 10 blocks of calls after a warm-up, least and most in brackets. FLOPs "
        "are the model's: 4 (LoRA) or 6 (full) a token for each weight of the blocks and of the output layer, and "
        "attention's products over the keys that are not masked; no lookup, no LoRA factor, nothing computed twice. "
        "What compiles, compiles beside its whole stage, so seconds of compilation are upper bounds.",
    ]
    if limits:
        found = ", ".join(f"{limit / 1e12:.4g}" for limit in limits[:1])
        spread = f"{min(limits) / 1e12:.4g} to {max(limits) / 1e12:.4g}"
        text.append(f"The ceiling, a large bfloat16 product measured here: {found} TFLOP/s ({spread}).")
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
            rate = row["flops"] / row["seconds"]["median"]
            share = f"{100 * rate / limit:.1f}%" if limit else ""
            cells = [_ms(row), f"{_tokens(row) / row['seconds']['median']:,.0f}", f"{rate / 1e12:.4g}", share]
        compiled = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        memory = [_gigabytes(row, key) for key in ("planned", "peak", "predicted")]
        table.append([name_of(row["case"]), *cells, compiled, *memory])
    return record.table(header, table)


def _compared(timed: list[Row]) -> str:
    """Each of ours beside each of theirs of the same shape and texts: a run's step, theirs over ours."""

    def alike(row: Row) -> tuple:
        return tuple(row["case"][key] for key in ("shape", "batch", "tokens"))

    theirs = [row for row in timed if row["case"]["side"] == "peft"]
    table = [
        [name_of(own["case"]), name_of(other["case"]), f"{_ratio(own, other):.2f}"]
        for own in timed
        for other in theirs
        if own["case"]["side"] == "ours" and alike(own) == alike(other) and _method(own) == _method(other)
    ]
    header = ["ours", "theirs", "theirs / ours, a run's step"]
    return "Beside theirs:\n\n" + record.table(header, table) if table else ""


def _packing(timed: list[Row]) -> str:
    """The steps of packs of each size, over the quickest step of one run with as many tokens."""
    ours = [row for row in timed if row["case"]["side"] == "ours" and _method(row) == "lora"]
    groups: dict[tuple, list[Row]] = {}
    for row in ours:
        groups.setdefault(tuple(row["case"][key] for key in ("shape", "base", "batch", "tokens")), []).append(row)
    table = []
    for (shape, _, batch, tokens), group in groups.items():
        one = min((_median(row) for row in group if row["case"]["runs"] == 1), default=None)
        if one is None or len({row["case"]["runs"] for row in group}) == 1:
            continue
        for runs, row in sorted(_least(group, lambda row: row["case"]["runs"]).items()):
            cost = _median(row) / one
            told = [f"{shape}, {batch} × {tokens}", str(runs), _ms(row), f"{cost:.2f}", f"{runs / cost:.2f}"]
            table.append([*told, row["case"]["remat"], str(row["case"]["unroll"])])
    header = ["texts of a run", "runs", "step ms", "times one run's", "gain over one by one", "remat", "unroll"]
    return "Packing, the quickest setting of each size:\n\n" + record.table(header, table) if table else ""


def _sweeps(rows: list[Row], timed: list[Row]) -> str:
    """Whole sweeps, against what PEFT's measured steps amount to."""
    table = []
    for row in rows:
        if "wall_seconds" not in row:
            continue
        case, wall = row["case"], row["wall_seconds"]
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["parts"].items())
        table.append([name_of(case), f"{wall:.1f} ({parts})", "", ""])
        for other in timed:
            peer = other["case"]
            same = all(peer[key] == case[key] for key in ("shape", "method", "batch", "tokens"))
            if peer["side"] == "peft" and same:
                steps = case["runs"] * case["steps"] * _median(other)
                once = other["compile_seconds"] if peer["mode"] == "compile" else 0.0
                cells = [f"{steps + once:.0f} ({once:.0f} of it compiling)", f"{(steps + once) / wall:.1f}"]
                table.append([name_of(peer), *cells, f"{steps / wall:.1f}"])
    note = (
        "Sweeps, from the process's start to the last step, without evaluation. Theirs is computed and not run: the "
        "measured step times steps and runs, and one compilation; their start is not counted."
    )
    header = ["", "seconds", "theirs / ours", "without their compilation"]
    return f"{note}\n\n{record.table(header, table)}" if table else ""


def _least(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, Row]:
    best: dict[Any, Row] = {}
    for row in rows:
        if key(row) not in best or _median(row) < _median(best[key(row)]):
            best[key(row)] = row
    return best


def _ratio(own: Row, other: Row) -> float:
    return own["case"]["runs"] * _median(other) / _median(own)


def _method(row: Row) -> str:
    return row["case"]["method"]


def _median(row: Row) -> float:
    return row["seconds"]["median"]


def _tokens(row: Row) -> int:
    return row["case"].get("runs", 1) * row["case"]["batch"] * row["case"]["tokens"]


def _ms(row: Row) -> str:
    least, median, most = (1e3 * row["seconds"][key] for key in ("min", "median", "max"))
    return f"{median:.2f} ({least:.2f}–{most:.2f})"


def _gigabytes(row: Row, key: str) -> str:
    found = row.get("memory", {}).get(key)
    return "" if found is None else f"{found / 1e9:.2f}"


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
