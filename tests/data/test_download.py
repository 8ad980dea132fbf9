"""Downloads from a server that misbehaves: refused, nothing is left, and the next start works."""

import hashlib
import http.server
import threading

import pytest

from lora_jax.data import download as downloads
from lora_jax.data.bounded import LARGEST
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.errors import UserError

CONTENT = b"mr,ref\n" * 100
CLOSED = "http://127.0.0.1:9/"  # nothing listens there


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers ``/fault/name``."""

    def do_GET(self):
        fault = self.path.split("/")[1]
        location = {"to-file": "file:///etc/passwd", "to-ftp": "ftp://127.0.0.1/a.csv", "to-good": "/good/a.csv"}
        if fault in location:
            self.send_response(302)
            self.send_header("Location", location[fault])
        else:
            self.send_response(500 if fault == "status" else 200)
        sent = {"wrong": CONTENT[:-1] + b"!", "more": 3 * CONTENT}.get(fault, CONTENT)
        if fault not in ("unsized", *location):
            self.send_header("Content-Length", str(len(CONTENT) if fault == "more" else len(sent)))
        self.end_headers()
        if fault not in location:
            self.wfile.write(sent[:50] if fault in ("dies", "stalls") else sent)
        if fault == "stalls":
            self.server.released.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.released.set()
        server.shutdown()


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))

    def fetch(url: str, largest: int = LARGEST):
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        return raw_folder("made-up", None, [RawFile("a.csv", url, sha256, largest)], "a.zip")

    return fetch


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("dies", r"cannot download .* \(the connection ended 650 bytes early\)"),
        ("stalls", r"cannot download .* \(timed out\)"),
        ("status", r"cannot download .* \(HTTP Error 500"),
        ("wrong", r"has the SHA-256 .*, expected .*; it is not used"),
        ("large", r"cannot download .* \(it has more than 100 bytes\)"),
        ("unsized", r"cannot download .* \(it has more than 100 bytes\)"),
        ("to-file", r"cannot download .*file:///etc/passwd"),
        ("to-ftp", r"cannot download .* \(refused, a redirect to ftp:"),
    ],
)
def test_what_goes_wrong_is_refused_and_the_next_start_works(fetch, address, tmp_path, monkeypatch, fault, complaint):
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "SECONDS", 0.1)
        with pytest.raises(UserError, match=rf"task=made-up: .*{complaint}.*name their folder by task\.data_dir"):
            fetch(f"{address}{fault}/", 100 if fault in ("large", "unsized") else LARGEST)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert (fetch(f"{address}good/") / "a.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["more", "to-good", "unsized"])
def test_only_what_is_expected_is_read(fetch, address, fault):
    """More bytes than declared are not read, and a redirect is followed to HTTP."""
    assert (fetch(f"{address}{fault}/") / "a.csv").read_bytes() == CONTENT


def test_a_damaged_download_is_downloaded_anew_or_refused(fetch, address, caplog):
    folder = fetch(f"{address}good/")
    assert fetch(CLOSED) == folder  # without network
    for damage in (lambda file: file.write_bytes(CONTENT[:-1]), lambda file: file.unlink()):
        damage(folder / "a.csv")
        with pytest.raises(
            UserError, match=rf"{folder} is damaged \(a\.csv .*\), and cannot be made anew: .*cannot down"
        ):
            fetch(CLOSED)
        caplog.clear()
        assert (fetch(f"{address}good/") / "a.csv").read_bytes() == CONTENT
        assert caplog.text.count(f"{folder} is damaged: a.csv") == 1
    assert list(folder.parent.iterdir()) == [folder]
