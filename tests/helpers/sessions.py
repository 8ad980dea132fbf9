"""Fixtures that all workers of pytest-xdist share: a folder, a command line on the tiny model, and a finished sweep."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.command_line import SWEPT, CommandLine


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this session, which all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def command(session_folder: Path, tiny_model: Path) -> CommandLine:
    home = session_folder / "home"
    home.mkdir(exist_ok=True)
    return CommandLine(tiny_model, home)


@pytest.fixture(scope="session")
def swept(session_folder: Path, command: CommandLine) -> tuple[Path, str]:
    """The folder of an uninterrupted sweep, and its output. Tests must not change the folder."""
    folder, output = session_folder / "swept/sweep", session_folder / "swept.txt"
    with FileLock(session_folder / "swept.lock"):
        if not output.exists():
            done = command.sweep(folder, *SWEPT)
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    return folder, output.read_text()
