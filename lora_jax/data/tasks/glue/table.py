"""The tasks of GLUE as a table: their files, columns, classes and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_jax.data.raw import RawFile

# No licence allows redistribution of all of it, so not in this package: read from task.data_dir, or downloaded once.
_COPY = "https://raw.githubusercontent.com/F0restL1n/BERT/0d0288be08079531c7b3a85af3d532f9adb0f13a/glue_data"
_PUBLISHED = "https://dl.fbaipublicfiles.com/glue/data"
MIB = 2**20


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE: one text or two, and a class or a score from 0 to 5.

    Attributes:
      name: the name that ``task.name`` takes.
      folder: where the raw files lie below ``data_root``.
      archive: the zip file in which GLUE publishes them; empty if there is none.
      files: the raw files, that of the training texts first.
      texts: the columns of the texts.
      label: the column of the label.
      labels: the class for each value of that column, in the order of Hugging Face's `datasets`; none for scores.
      metrics: what is recorded. The first selects, and is the headline.
      test: the file of the test split: GLUE's development set.
      columns: the columns of files without a header.
      dev_ids: the file of the development set's pairs of ids, where `test` holds the training texts too.
      ragged: whether rows with too few columns are left out, and blank texts kept, as in Hugging Face's `datasets`.
      shuffled: whether TFDS shuffles each split; else examples are in the order of the files.
    """

    name: str
    folder: str
    archive: str
    files: tuple[RawFile, ...]
    texts: tuple[str, ...]
    labels: Mapping[str, str]
    metrics: tuple[str, ...] = ("accuracy", "loss")
    label: str = "label"
    test: str = "dev.tsv"
    columns: tuple[str, ...] = ()
    dev_ids: str = ""
    ragged: bool = False
    shuffled: bool = False

    @property
    def train(self) -> str:
        """The file of the training texts."""
        return self.files[0].name

    @property
    def largest(self) -> int:
        """The most bytes that a raw file may have."""
        return max(raw.largest for raw in self.files)


def _copied(folder: str, *sha256: str, names: tuple[str, ...] = ("train.tsv", "dev.tsv")) -> tuple[RawFile, ...]:
    return tuple(RawFile(name, f"{_COPY}/{folder}/", digest) for name, digest in zip(names, sha256, strict=True))


def _published(archive: str, *names: str, largest: int) -> tuple[RawFile, ...]:
    return tuple(RawFile(name, f"{_PUBLISHED}/{archive}", largest=largest) for name in names)


_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
_PAIR = ("sentence1", "sentence2")

COLA = GlueTask(
    "cola",
    "glue/CoLA",
    "CoLA.zip",
    _copied(
        "CoLA",
        "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
        "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
    ),
    ("sentence",),
    {"0": "unacceptable", "1": "acceptable"},
    ("matthews", "accuracy", "loss"),
    columns=("source", "label", "mark", "sentence"),
    shuffled=True,  # as the first version did, so that its records still fit the data's fingerprint
)
SST2 = GlueTask(
    "sst2",
    "glue/SST-2",
    "SST-2.zip",
    _copied(
        "SST-2",
        "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
        "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    ),
    ("sentence",),
    {"0": "negative", "1": "positive"},
)
MRPC = GlueTask(
    "mrpc",
    "glue/MRPC",
    "",
    _copied(
        "MRPC",
        "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
        "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
        names=("msr_paraphrase_train.txt", "dev_ids.tsv"),
    ),
    ("#1 String", "#2 String"),
    {"0": "not_equivalent", "1": "equivalent"},
    ("accuracy", "f1", "loss"),
    label="Quality",
    test="msr_paraphrase_train.txt",
    dev_ids="dev_ids.tsv",
)
STSB = GlueTask(
    "stsb",
    "glue/STS-B",
    "STS-B.zip",
    _copied(
        "STS-B",
        "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2",
        "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59",
    ),
    _PAIR,
    {},
    ("pearson", "spearman", "mean_squared_error"),
    label="score",
)
RTE = GlueTask(
    "rte",
    "glue/RTE",
    "RTE.zip",
    _copied(
        "RTE",
        "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
        "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
    ),
    _PAIR,
    _ENTAILMENT,
)
WNLI = GlueTask(
    "wnli",
    "glue/WNLI",
    "WNLI.zip",
    _copied(
        "WNLI",
        "9a88e9d54b6861cc796a088e9acf4f5f65064a9ef65ae6fa7a688b28391e5c9a",
        "cba00490596dd14be8cf53b4f53bb744abe3a7b89f81ab210528d80225338ed5",
    ),
    _PAIR,
    {"0": "not_entailment", "1": "entailment"},
)
QNLI = GlueTask(
    "qnli",
    "glue/QNLI",
    "QNLIv2.zip",
    _published("QNLIv2.zip", "train.tsv", "dev.tsv", largest=64 * MIB),
    ("question", "sentence"),
    _ENTAILMENT,
)
MNLI = GlueTask(
    "mnli",
    "glue/MNLI",
    "MNLI.zip",
    _published("MNLI.zip", "train.tsv", "dev_matched.tsv", largest=1024 * MIB),
    _PAIR,
    {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
    label="gold_label",
    test="dev_matched.tsv",
)
MNLI_MISMATCHED = GlueTask(
    "mnli_mismatched",
    "glue/MNLI",
    "MNLI.zip",
    _published("MNLI.zip", "train.tsv", "dev_mismatched.tsv", largest=1024 * MIB),
    _PAIR,
    MNLI.labels,
    label="gold_label",
    test="dev_mismatched.tsv",
)
QQP = GlueTask(
    "qqp",
    "glue/QQP",
    "QQP-clean.zip",
    _published("QQP-clean.zip", "train.tsv", "dev.tsv", largest=128 * MIB),
    ("question1", "question2"),
    {"0": "not_duplicate", "1": "duplicate"},
    ("accuracy", "f1", "loss"),
    label="is_duplicate",
    ragged=True,
)
TABLE = (COLA, SST2, MRPC, STSB, RTE, WNLI, QNLI, MNLI, MNLI_MISMATCHED, QQP)
