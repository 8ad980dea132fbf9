"""Weights & Biases that hangs, refuses or dies, and downloads that die in the middle."""

import contextlib
import functools
import hashlib
import http.server
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from faults import expectations
from faults.compare import has_traceback, statuses
from faults.fault import Fault, Trial, require
from faults.process import Done, children

NOT_A_KEY = "0" * 40
WANDB_BOUND = 180.0  # seconds beyond an undisturbed sweep

# Gives CoLA another address and other hashes.
OTHER_ADDRESS = """
import dataclasses, os
from lora_jax.data.raw import RawFile
from lora_jax.data.tasks import TASKS
from lora_jax.data.tasks.glue import make_task
from lora_jax.data.tasks.glue.table import COLA
url = os.environ["FAULT_URL"]
files = tuple(RawFile(raw.name, url, os.environ["FAULT_" + raw.name[:3]]) for raw in COLA.files)
TASKS["cola"] = make_task(dataclasses.replace(COLA, files=files))
"""


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every request with `answer`, which a subclass sets."""

    answer: Callable[["Server"], None]

    def do_GET(self) -> None:
        type(self).answer(self)

    do_POST = do_HEAD = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve(answer: Callable[[Server], None]) -> Iterator[str]:
    """Serves `answer` to every request at a local address, which is yielded."""
    handler = type("Answering", (Server,), {"answer": staticmethod(answer)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def never(request: Server) -> None:
    threading.Event().wait(3600)


def fail(request: Server) -> None:
    request.send_error(500)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """Yields an address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


WANDB_SERVERS: dict[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
    "never answers": functools.partial(serve, never),
    "answers 500": functools.partial(serve, fail),
    "refuses": refusing,
}


def _wandb_server(trial: Trial, kind: str) -> None:
    with WANDB_SERVERS[kind]() as url:
        variables = {"WANDB_BASE_URL": url.rstrip("/"), "WANDB_API_KEY": NOT_A_KEY}
        with trial.start("sweep", *trial.new_sweep, "wandb.mode=online", **variables) as running:
            done = trial.wait(running, trial.world.seconds + WANDB_BOUND)
    _check_goes_on(trial, done)


def _wandb_killed(trial: Trial) -> None:
    """The service process of W&B is killed at a random moment, or as soon as it is there."""
    with trial.start("sweep", *trial.new_sweep, "wandb.mode=offline") as running:
        running.sleep(trial.moment(trial.world.seconds))
        while not (services := _wandb_services(running.pid)) and not running.ended:
            running.sleep(running.seconds + 0.05)
        trial.note(f"{len(services)} services at {running.seconds:.2f} s")
        for service in services:
            with contextlib.suppress(ProcessLookupError):
                os.kill(service, signal.SIGKILL)
        done = trial.wait(running, trial.world.seconds + WANDB_BOUND)
    _check_goes_on(trial, done)


def _check_goes_on(trial: Trial, done: Done) -> None:
    require(done.status == 0, f"expected status 0: {done}")
    if has_traceback(done.text):
        trial.note("W&B prints a traceback")
    expectations.identical(trial, expectations.OTHER_SETTINGS)


def _wandb_services(pid: int) -> list[int]:
    """Returns the processes of W&B's service that `pid` has started."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"wandb" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _download(trial: Trial) -> None:
    """A file of CoLA is cut off, or its connection reset, or its server fails, in turn. Then all is well."""
    files = _write_cola(trial.world.folder / "data" / "train.csv")
    hashes = {f"FAULT_{name[:3]}": hashlib.sha256(content).hexdigest() for name, content in files.items()}
    kind = ("cut", "reset", "500")[trial.index % 3]
    victim = trial.random.choice(sorted(files))
    size = trial.random.randrange(len(files[victim]))
    trial.note(f"{victim}, {kind} after {size} bytes")
    well = False

    def answer(request: Server) -> None:
        name = request.path.strip("/")
        content = files[name]
        if name == victim and not well and kind == "500":
            request.send_error(500)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if name != victim or well:
            request.wfile.write(content)
            return
        request.wfile.write(content[:size])
        if kind == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()

    arguments = [*trial.new_sweep, "task=cola", "task.data_dir=null", "baseline=none"]
    with serve(answer) as url:
        done = trial.run("sweep", *arguments, prelude=OTHER_ADDRESS, FAULT_URL=url, **hashes)
        expectations.refused(done, f"{url}{victim}")
        expectations.nothing_trained(done, trial.sweep)
        left = [path.name for path in (trial.cache / "raw").glob("*")]
        require(not left, f"the cache keeps {', '.join(left)}")
        well = True
        done = trial.run("sweep", *arguments, prelude=OTHER_ADDRESS, FAULT_URL=url, **hashes)
        expectations.ended_well(done)
        require(set(statuses(trial.sweep).values()) == {"finished"}, f"not all runs have finished: {done}")


def _write_cola(source: Path) -> dict[str, bytes]:
    """Returns the files of a little CoLA: a source, a label, a mark and a sentence in every line."""
    texts = [line.rpartition(",")[0].strip('"') for line in source.read_text().splitlines()[1:] if line.count('"') != 1]
    lines = [f"made\t{i % 2}\t\t{text} {i}\n" for i, text in enumerate(texts) if text]
    return {"train.tsv": "".join(lines[:300]).encode(), "dev.tsv": "".join(lines[300:360]).encode()}


WANDB_HOLDS = f"training goes on, the undisturbed results, status 0, at most {WANDB_BOUND:.0f} s more"
FAULTS = (
    *(
        Fault(f"a W&B server that {kind}", WANDB_HOLDS, 3, functools.partial(_wandb_server, kind=kind))
        for kind in WANDB_SERVERS
    ),
    Fault("W&B's service is killed", WANDB_HOLDS, 10, _wandb_killed),
    Fault(
        "a download dies in the middle",
        "one line of error with the address, status 2, nothing in the cache; the next start works",
        9,
        _download,
    ),
)
