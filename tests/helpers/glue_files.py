"""Raw files of GLUE's tasks, in the format in which they are published, with a few records made up for tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

# The texts, one or two, and the label as the raw file has it.
Record = tuple[str, ...]

PARSES = "\t".join(["( x )"] * 4)  # MNLI has two parses of each text


def _numbered(header: str) -> Callable[[Sequence[Record]], str]:
    return lambda records: _lines([header, *("\t".join((str(i), *record)) for i, record in enumerate(records))])


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _cola(records: Sequence[Record]) -> str:
    return _lines([f"gj04\t{label}\t{'' if label == '1' else '*'}\t{text}" for text, label in records])


def _sst2(records: Sequence[Record]) -> str:
    return _lines(["sentence\tlabel", *map("\t".join, records)])


def _stsb(records: Sequence[Record]) -> str:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    return _lines(
        [header, *(f"{i}\tnews\tMSRpar\t2012\t{i:04}\tnone\tnone\t" + "\t".join(r) for i, r in enumerate(records))]
    )


def _mnli(annotators: int) -> Callable[[Sequence[Record]], str]:
    """Training pairs have the label of one annotator beside the gold label, those of the development sets five."""
    names = [f"label{i + 1}" for i in range(annotators)]
    header = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    columns = [*header.split(), "sentence1", "sentence2", *names, "gold_label"]
    return lambda records: _lines(
        [
            "\t".join(columns),
            *(
                f"{i}\t{i}\t{i}n\ttravel\t{PARSES}\t{a}\t{b}" + f"\t{gold}" * (annotators + 1)
                for i, (a, b, gold) in enumerate(records)
            ),
        ]
    )


def _qqp(records: Sequence[Record]) -> str:
    rows = [f"{i}\t{2 * i}\t{2 * i + 1}\t" + "\t".join(record) for i, record in enumerate(records)]
    return _lines(["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *rows])


_PAIRS = _numbered("index\tsentence1\tsentence2\tlabel")
_QNLI = _numbered("index\tquestion\tsentence\tlabel")
_FORMATS = {
    "cola": (("train.tsv", _cola), ("dev.tsv", _cola)),
    "sst2": (("train.tsv", _sst2), ("dev.tsv", _sst2)),
    "stsb": (("train.tsv", _stsb), ("dev.tsv", _stsb)),
    "rte": (("train.tsv", _PAIRS), ("dev.tsv", _PAIRS)),
    "wnli": (("train.tsv", _PAIRS), ("dev.tsv", _PAIRS)),
    "qnli": (("train.tsv", _QNLI), ("dev.tsv", _QNLI)),
    "mnli": (("train.tsv", _mnli(1)), ("dev_matched.tsv", _mnli(5))),
    "mnli_mismatched": (("train.tsv", _mnli(1)), ("dev_mismatched.tsv", _mnli(5))),
    "qqp": (("train.tsv", _qqp), ("dev.tsv", _qqp)),
}


def write_glue(task: str, folder: Path, train: Sequence[Record], dev: Sequence[Record]) -> Path:
    """Writes the raw files of `task` into `folder`, which may not exist yet, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "mrpc":
        _write_mrpc(folder, train, dev)
        return folder
    for (name, text_of), records in zip(_FORMATS[task], (train, dev), strict=True):
        (folder / name).write_text(text_of(records), encoding="utf-8")
    return folder


def _write_mrpc(folder: Path, train: Sequence[Record], dev: Sequence[Record]) -> None:
    """The pairs of the development set stand among the others, the first one first."""
    records = [*dev[:1], *train, *dev[1:]]
    ids = [(str(100 + i), str(900 + i)) for i in range(len(records))]
    lines = [f"{label}\t{a}\t{b}\t{one}\t{two}" for (one, two, label), (a, b) in zip(records, ids, strict=True)]
    text = _lines(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines])
    (folder / "msr_paraphrase_train.txt").write_text("\ufeff" + text, encoding="utf-8")
    held = ids[:1] + ids[1 + len(train) :]
    (folder / "dev_ids.tsv").write_text(_lines(list(map("\t".join, reversed(held)))), encoding="utf-8")
