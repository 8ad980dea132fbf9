"""Ends a command on SIGINT (Ctrl-C) or SIGTERM (a cluster's scheduler), soon and with what is on disk whole.

The first signal raises KeyboardInterrupt, so that open files, checkpoints and sinks are closed. What takes longer than
GRACE_SECONDS is abandoned, and so it is on a second signal: every file is replaced as a whole, so the results can be
resumed at any moment.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

GRACE_SECONDS = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible(message: Callable[[], str]) -> Iterator[None]:
    """Ends the process if the body is interrupted: prints `message()`, with exit status 130 (SIGINT) or 143 (SIGTERM).

    It must be entered in the main thread.
    """
    received: list[int] = []
    stderr = os.dup(2)

    def handle(number: int, frame: Any) -> NoReturn:
        received.append(number)
        # What the interrupt ends, such as an import in C or a thread of orbax, may print a traceback on its way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise KeyboardInterrupt

    # Python runs `handle` between two of its own instructions, which a compilation may delay by a minute. The pipe is
    # written at once.
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for number in SIGNALS:
        signal.signal(number, handle)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read_end, stderr, message), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if received or isinstance(error, KeyboardInterrupt):
            _end(received[0] if received else signal.SIGINT, stderr, message)
        raise


def _watch(read_end: int, stderr: int, message: Callable[[], str]) -> None:
    """Ends the process GRACE_SECONDS after the first signal, or at the second."""
    while (number := os.read(read_end, 1)[0]) not in SIGNALS:
        pass
    select.select([read_end], [], [], GRACE_SECONDS)
    _end(number, stderr, message)


_ending = threading.Lock()


def _end(number: int, stderr: int, message: Callable[[], str]) -> NoReturn:
    """Ends the process without waiting for threads or exit handlers, which may hang."""
    if _ending.acquire(blocking=False):
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            os.write(stderr, f"{message()}\n".encode())
        os._exit(128 + number)
    threading.Event().wait()  # another thread is ending the process
    raise AssertionError
