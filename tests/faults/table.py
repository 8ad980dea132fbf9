"""Writes the table of a campaign, as JSON and as Markdown."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.fault import Result
from faults.registry import GROUPS

from lora_jax.bench import record


def write(results: Sequence[Result], facts: Mapping[str, Any], out: Path) -> Path:
    """Writes ``campaign.json`` and ``campaign.md`` to `out`. Returns the path of the Markdown file.

    Faults that an earlier campaign has tried and this one has not keep their rows, and the facts of that campaign.

    Args:
      results: of all trials.
      facts: the command, the date, the commit and the hardware.
      out: a folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "campaign.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"campaigns": [], "rows": []}
    campaign = 1 + max((item["campaign"] for item in earlier["campaigns"]), default=0)
    rows = {row["fault"]: row for row in earlier["rows"]} | {row["fault"]: row for row in _rows(results, campaign)}
    used = {row["campaign"] for row in rows.values()}
    campaigns = [item for item in [*earlier["campaigns"], {"campaign": campaign, **facts}] if item["campaign"] in used]
    ordered = [rows[fault.name] for faults in GROUPS.values() for fault in faults if fault.name in rows]
    path.write_text(json.dumps({"campaigns": campaigns, "rows": ordered}, indent=2) + "\n")
    page = path.with_suffix(".md")
    page.write_text(_page(campaigns, ordered))
    return page


def _rows(results: Sequence[Result], campaign: int) -> list[dict[str, Any]]:
    rows = []
    for group, faults in GROUPS.items():
        for fault in faults:
            own = [result for result in results if result.fault == fault.name]
            tried = [result for result in own if result.outcome != "not tried"]
            if own:
                rows.append(
                    {
                        "group": group,
                        "fault": fault.name,
                        "must_hold": fault.must_hold,
                        "tried": len(tried),
                        "held": sum(result.outcome == "held" for result in tried),
                        "not_tried": sorted({result.reason for result in own if result.outcome == "not tried"}),
                        "failures": [str(result) for result in tried if result.outcome == "not held"],
                        "longest_seconds": math.ceil(max(result.seconds for result in own)),
                        "campaign": campaign,
                    }
                )
    return rows


def _page(campaigns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    tried, held = sum(row["tried"] for row in rows), sum(row["held"] for row in rows)
    lines = ["# Faults", "", f"{held} of {tried} trials held.", ""]
    for item in campaigns:
        lines += [
            f"    {item['command']}",
            "",
            f"Campaign {item['campaign']}: {item['date']}, commit {item['commit']}, ",
        ]
        versions = ", ".join(f"{name} {version}" for name, version in item["versions"].items())
        lines[-1] += f"{item['hardware']}; {versions}; {item['trials']} trials in {item['minutes']} min."
        lines += [""]
    several = len(campaigns) > 1
    header = ["group", "fault", "what must hold", "tried", "held", *(["campaign"] if several else [])]
    cells = [
        [
            row["group"],
            row["fault"],
            row["must_hold"],
            _tried(row),
            str(row["held"]),
            *([str(row["campaign"])] * several),
        ]
        for row in rows
    ]
    lines += [record.table(header, cells)]
    failures = [f"- {failure}" for row in rows for failure in row["failures"]]
    lines += ["", "## What did not hold", "", *failures] if failures else []
    return "\n".join(lines) + "\n"


def _tried(row: Mapping[str, Any]) -> str:
    return f"{row['tried']} ({'; '.join(row['not_tried'])})" if row["not_tried"] else str(row["tried"])
