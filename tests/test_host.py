"""What a process puts off at its start."""

import subprocess
import sys

PUT_OFF = """
import gc, threading
from lora_jax.host import defer_garbage_collection, import_report, resume_garbage_collection
defer_garbage_collection()
assert not gc.isenabled()
resume_garbage_collection()
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen
resume_garbage_collection()
assert gc.get_freeze_count() == frozen
import_report()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
import sys
assert {"matplotlib.figure", "scipy.special"} <= sys.modules.keys() and "jax" not in sys.modules
"""


def test_garbage_and_the_imports_of_the_report_are_put_off_until_a_pack_trains():
    subprocess.run([sys.executable, "-c", PUT_OFF], check=True)
