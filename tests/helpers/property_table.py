"""The table of what tests/methods/test_properties.py and test_packed_gradients.py prove, from their cases."""

from collections.abc import Mapping

from helpers.families import CONFIGS
from helpers.method_cases import CASES, Case

HEADER = (
    "method",
    "families",
    "step 0 = base",
    "only the delta trains",
    "packed = alone",
    "saved = loaded",
    "merged = grafted",
    "trained, without the head",
)


def property_table(cases: Mapping[str, Case] = CASES) -> str:
    """Returns the table in Markdown. Its exceptions have numbers, and their reasons follow it."""
    reasons: list[str] = []

    def note(reason: str | None, otherwise: str) -> str:
        if reason is None:
            return "yes"
        if reason not in reasons:
            reasons.append(reason)
        return f"{otherwise} ({reasons.index(reason) + 1})"

    rows = []
    for name, case in cases.items():
        families = ", ".join(case.families) if len(case.families) < len(CONFIGS) else "all"
        for reason in dict.fromkeys(case.refused.values()):
            refused = ", ".join(family for family, why in case.refused.items() if why == reason)
            families += f", {note(reason, f'not {refused}')}"
        start, merged = note(case.start, "no"), note(case.unmerged, "refused")
        rows.append((name, families, start, "yes", "yes", "yes", merged, f"`{case.formula.text}`"))
    lines = [f"|{'|'.join(row)}|" for row in (HEADER, ("-",) * len(HEADER), *rows)]
    notes = [f"{i}. {reason[0].upper()}{reason[1:]}." for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes])
