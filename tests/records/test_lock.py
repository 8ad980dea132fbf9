"""One process at a time uses a folder of results."""

import shutil
import subprocess
import sys

import pytest

from lora_jax.commands.folder import claimed
from lora_jax.errors import UserError
from lora_jax.records import LOCK_FILE, has_lock, locked

HOLD = "import sys; from pathlib import Path; from lora_jax.records import locked\nwith locked(Path(sys.argv[1])): "


def test_a_second_process_is_told_which_one_has_the_folder(tmp_path):
    code = HOLD + "print('locked', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on "), locked(tmp_path):
        pass
    holder.kill()  # the system releases the lock, and the file remains
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_may_lock_its_folder_again(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path / "..") as _, locked(tmp_path):
            pass
        done = subprocess.run([sys.executable, "-c", HOLD + "pass", str(tmp_path)], capture_output=True, text=True)
        assert "UserError" in done.stderr and "in use by process" in done.stderr
    assert subprocess.run([sys.executable, "-c", HOLD + "pass", str(tmp_path)]).returncode == 0


def make_anew(folder):
    """Does what a user and another process do: removes the folder of a running command, and begins one there."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / LOCK_FILE).write_text("another process")
    (folder / "command.json").write_text("{}")


def test_a_lock_is_lost_with_its_folder(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    with locked(folder):
        assert has_lock(folder)
        make_anew(folder)
        assert not has_lock(folder)
    assert not has_lock(folder)
    assert (folder / LOCK_FILE).read_text() == "another process"


def test_a_command_leaves_a_folder_that_is_now_another_commands(tmp_path):
    """A command that has begun no run removes what it wrote, and nothing else."""
    folder = tmp_path / "sweep"
    with claimed(folder, kind="sweep", new=[], results=tmp_path / "results"):
        make_anew(folder)
    assert sorted(path.name for path in folder.iterdir()) == [LOCK_FILE, "command.json"]
    with claimed(tmp_path / "other", kind="sweep", new=[], results=tmp_path / "results"):
        assert (tmp_path / "other/command.json").exists()
    assert not (tmp_path / "other").exists()
