"""What a process does at its start: its malloc settings, its devices, and what is put off until it trains."""

import contextlib
import gc
import importlib
import logging
import os
import sys
import threading

# What the report of a sweep imports when it draws; together it takes a second.
REPORT_IMPORTS = ("lora_jax.report.charts", "scipy.special")
MALLOC = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 2}"


def restart_with_malloc_settings() -> None:
    """Starts this process anew, once, with other settings of glibc's malloc; on Linux only.

    hugetlb: XLA allocates a program's temporaries anew at every call, and the system maps and zeroes them page by page:
    300,000 page faults a step for four packed MiniLM runs of 32 x 32 tokens. With huge pages there are 650, and a step
    takes 842 ms in place of 1,044 (462 in place of 540 at 32 x 16).

    arena_max: by default the threads of JAX, XLA and Orbax spread over eight arenas for each core, and each arena keeps
    what was freed in it. A sweep of 50 packs grew from 0.98 to 3.26 GB on 16 cores; with one arena for each core, to
    1.58 GB. With fewer, XLA's threads wait for each other while they compile: 50 packs end at 1.24 GB with eight arenas
    and 1.09 GB with four, but a first sweep on an H100 takes 107 s and 156 s in place of 91 s.

    glibc reads its settings before Python starts, so they cannot be changed from within. What the user set in
    GLIBC_TUNABLES stays.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def start_devices() -> None:
    """Begins to start JAX's devices in a thread. On a GPU it takes two seconds, which other imports can use."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # it tells every CPU that it is no TPU

    def start() -> None:
        import jax.numpy as jnp

        jnp.asarray(0.0).block_until_ready()  # a GPU's first copy takes half a second

    threading.Thread(target=start).start()


def defer_garbage_collection() -> None:
    """Switches the collector of reference cycles off until `resume_garbage_collection`.

    Imports and JAX's tracing make many objects and little garbage. Collections in between take a sixth of the imports.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Switches the collector on, if it is off. It never scans what was made before."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def import_report() -> None:
    """Begins to import what the report needs in a thread, while the main thread waits for compiled programs."""

    def load() -> None:
        with contextlib.suppress(Exception):  # the report imports the modules again, and raises the error
            for name in REPORT_IMPORTS:
                importlib.import_module(name)

    threading.Thread(target=load, daemon=True).start()
