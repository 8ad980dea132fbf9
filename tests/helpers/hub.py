"""A local server of the parts of the Hugging Face Hub that `snapshot_download` needs."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path


class _Hub(http.server.SimpleHTTPRequestHandler):
    """Serves every ``owner/name`` folder of a folder as a repository."""

    commit = "a" * 40

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        path = self.path.split("?")[0]
        api = path.startswith("/api/models/")
        owner, name, *rest = [part for part in path.removeprefix("/api/models").split("/") if part]
        folder = Path(self.directory, owner, name)
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        content, status = b"{}", 404
        if files and api and rest[:1] == ["tree"]:
            sizes = {file: (folder / file).stat().st_size for file in files}
            entries = [{"type": "file", "path": file, "oid": _digest(file), "size": sizes[file]} for file in files]
            content, status = json.dumps(entries).encode(), 200
        elif files and api and rest in ([], ["revision", "main"]):
            siblings = [{"rfilename": file} for file in files]
            model_info = {"id": f"{owner}/{name}", "sha": self.commit, "siblings": siblings}
            content, status = json.dumps(model_info).encode(), 200
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) in files:
            content, status = (folder / "/".join(rest[2:])).read_bytes(), 200
        self.send_response(status)
        self.send_header("ETag", f'"{_digest(path)}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@contextlib.contextmanager
def serve_hub(folder: Path, home: Path) -> Iterator[dict[str, str]]:
    """Serves the models in `folder`/owner/name as ``hf://owner/name``, and yields the environment of clients.

    Clients must be new processes, because huggingface_hub reads its environment when it is imported. Its cache is in
    `home`.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    try:
        yield environment | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    finally:
        server.shutdown()
        server.server_close()
