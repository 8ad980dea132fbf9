"""One process at a time uses a folder of results."""

import subprocess
import sys

import pytest

from lora_jax.errors import UserError
from lora_jax.records import LOCK_FILE, locked

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
