"""Search for content that a reader neither reads nor refuses, guided by what the code does with it.

    pip install atheris
    PYTHONPATH=tests python tests/faults/fuzz_by_coverage.py gguf --seconds 300

The search begins with a valid file, and changes bytes. It ends at the first content that breaks a promise, prints the
error, and leaves the content in a file ``crash-<hash>``.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lora_jax"]):
    from faults import test_fuzz_data, test_fuzz_weights

VALID = {
    "table": b"text,label\none,a\n",
    "labels": b'["a", "b"]',
    "archive": test_fuzz_data.archive([("a.csv", b"text,label\n")], 0),
}


def reader(name: str, folder: Path) -> tuple[bytes, Callable[[bytes], None]]:
    """Returns valid content for a reader, and what reads content and checks the promises."""
    if name in VALID:
        _, check = test_fuzz_data.READERS[name]
        return VALID[name], functools.partial(check, folder)
    return test_fuzz_weights.content_of(name), functools.partial(test_fuzz_weights.check, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=[*VALID, *test_fuzz_weights.FILES])
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        content, check = reader(args.reader, Path(folder))
        (corpus / "valid").write_bytes(content)
        check(content)
        limits = [f"-max_total_time={args.seconds}", f"-max_len={2 * len(content) + 100}", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
