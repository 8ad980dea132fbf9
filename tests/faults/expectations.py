"""What must hold after many kinds of faults. Each function raises NotHeld if it does not."""

from pathlib import Path

from faults.compare import difference, error_lines, has_traceback, report_files, stray_files, table_rows
from faults.fault import Trial, require
from faults.process import Done

# Fields of summary.json that differ if a sweep has other settings, which adapter.json names, and the same results.
OTHER_SETTINGS = frozenset({"adapter_bytes"})


def no_traceback(done: Done) -> None:
    require(not has_traceback(done.text), f"a traceback: {done}")


def ended_well(done: Done) -> None:
    """The command has ended with status 0, and without a traceback."""
    require(done.status == 0, f"expected status 0: {done}")
    no_traceback(done)


def refused(done: Done, *fragments: str) -> None:
    """The command has ended with status 2 and one line of error that has `fragments`, whatever their case."""
    require(done.status == 2, f"expected status 2: {done}")
    no_traceback(done)
    lines = error_lines(done.errors)
    require(len(lines) == 1, f"{len(lines)} lines of error: {done}")
    missing = [text for text in fragments if text.lower() not in lines[0].lower()]
    require(not missing, f"the error does not name {', '.join(missing)}: {lines[0]}")


def nothing_trained(done: Done, sweep: Path) -> None:
    require(": step " not in done.output, f"it trained: {done}")
    require(not list(sweep.rglob("metrics.jsonl")), f"it left runs in {sweep}")


def identical(trial: Trial, ignored: frozenset[str] = frozenset()) -> None:
    """The trial's sweep has the results of the undisturbed one, up to `ignored` fields, and no other files."""
    different = difference(trial.sweep, trial.world.finished, ignored=ignored)
    require(different is None, f"other results: {different}")
    stray = stray_files(trial.sweep, trial.world.finished)
    require(not stray, f"files are left: {', '.join(stray)}")


def continues(trial: Trial, ignored: frozenset[str] = frozenset(), **environment: str) -> None:
    """The trial's sweep continues and ends with the undisturbed results."""
    ended_well(proceed(trial, **environment))
    identical(trial, ignored)


def proceed(trial: Trial, **environment: str) -> Done:
    """Resumes the trial's sweep, or starts it anew where there is nothing to continue."""
    if trial.sweep.exists() and any(trial.sweep.iterdir()):
        done = trial.run("sweep", *trial.resumed_sweep, **environment)
        if done.status != 2:
            return done
        trial.note("there was nothing to continue")
        no_traceback(done)
    return trial.run("sweep", *trial.new_sweep, **environment)


def same_report(trial: Trial, done: Done, names: list[str], original: Path) -> None:
    """The report of a damaged sweep is the original's, or names what is damaged and keeps the other rows.

    Args:
      trial: its sweep is a damaged copy of `original`.
      done: the command that has built the report.
      names: texts one of which names the damaged file.
      original: the folder of the undamaged sweep, with its report.
    """
    no_traceback(done)
    page = (trial.sweep / "report/table.md").read_text() if (trial.sweep / "report/table.md").exists() else ""
    if names_one(done.text + page, names):
        require(done.status in (1, 2), f"it names the damage, but has status {done.status}")
        if done.status == 1:
            expected = table_rows(original)
            changed = [
                name
                for name, row in table_rows(trial.sweep).items()
                if row != expected.get(name) and row.get("status") in ("finished", "diverged")
            ]
            require(not changed, f"the report has other numbers for {', '.join(changed)}")
        return
    require(done.status == 0, f"the error does not name the damaged file: {done}")
    built, expected = report_files(trial.sweep), report_files(original)
    changed = [name for name in expected if built.get(name) != expected[name]]
    require(not changed, f"without a word, the report has another {', '.join(changed)}")


def names_one(text: str, names: list[str]) -> bool:
    """Returns whether `text` has one of `names`, however its lines are broken."""
    joined = "".join(text.split())
    return any("".join(name.split()) in joined for name in names)
