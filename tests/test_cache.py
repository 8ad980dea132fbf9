"""Which folder the cache is in, and that only its user can write to it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_jax import cache
from lora_jax.cache import cache_folder, private_folder
from lora_jax.errors import UserError


def test_the_environment_names_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("LORA_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/lora_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/lora_jax")
    monkeypatch.setenv("LORA_JAX_CACHE", "~/here")
    assert cache_folder() == Path("/home/somebody/here")
    monkeypatch.setenv("LORA_JAX_CACHE", "here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("LORA_JAX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/somebody/.cache/lora_jax")


def test_without_a_home_the_cache_must_be_named(monkeypatch, tmp_path):
    def no_home(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LORA_JAX_CACHE", raising=False)
    with pytest.raises(UserError, match=r"~/\.cache/lora_jax cannot be used: Could not .*; set LORA_JAX_CACHE"):
        cache_folder()
    monkeypatch.undo()
    code = "from lora_jax.cache import private_folder; print(private_folder('xla'))"
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "LORA_JAX_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "xla"), done.stderr


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def test_a_private_folder_is_created_for_this_user_alone(root):
    old = os.umask(0)
    try:
        assert private_folder("xla") == private_folder("xla") == root / "xla"
    finally:
        os.umask(old)
    assert root.stat().st_mode & 0o777 == (root / "xla").stat().st_mode & 0o777 == 0o700
    assert not list((root / "xla").iterdir())


def refused(path, reason):
    return pytest.raises(UserError, match=rf"the cache folder {path} cannot be used: {reason}.*; set LORA_JAX_CACHE to")


def test_a_file_in_the_folders_place_is_refused(root):
    root.parent.write_text("")
    with refused(root, "Not a directory"):
        private_folder("xla")
    root.parent.unlink()
    root.mkdir(parents=True)
    (root / "xla").write_text("")
    with refused(root / "xla", "it is not a folder"):
        private_folder("xla")
    (root / "xla").unlink()
    (root / "xla").symlink_to(root / "nowhere")
    with refused(root / "xla", "it is not a folder"):
        private_folder("xla")


@pytest.mark.parametrize("name", ["", "xla"])
def test_a_folder_that_others_can_write_to_is_refused(root, name, monkeypatch):
    private_folder("xla")
    for mode in (0o770, 0o702):
        (root / name).chmod(mode)
        with refused(root / name, rf"others can write to it \(mode {mode:04o}\); run chmod go-w"):
            private_folder("xla")
    (root / name).chmod(0o755)
    assert private_folder("xla")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with refused(root, f"it belongs to the user with the id {os.getuid()}, and this is 12345"):
        private_folder("xla")


@pytest.mark.parametrize("fault", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_to_is_refused(root, monkeypatch, fault):
    def fail(*_, **__):
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", fail)
        with refused(root, os.strerror(fault)):
            private_folder("xla")
    private_folder("xla")
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", fail)
    with refused(root / "xla", os.strerror(fault)):
        private_folder("xla")
