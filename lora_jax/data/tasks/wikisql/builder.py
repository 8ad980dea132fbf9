"""The TFDS builder of WikiSQL. Its description is README.md, which TFDS finds beside this file."""

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.json_lines import Record, read_json_lines

FILES = {"train": "train", "validation": "dev", "test": "test"}  # with .jsonl, and with .tables.jsonl
# In the order of WikiSQL's own numbers (lib/query.py).
AGGREGATIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")


class Wikisql(PromptBuilder):
    """Reads the questions and the tables of each split in `folder`; the network is not used."""

    homepage = "https://github.com/salesforce/WikiSQL"
    license = "BSD 3-Clause"

    def splits(self) -> dict[str, list[dict[str, str]]]:
        return {split: self._examples(name) for split, name in FILES.items()}

    def _examples(self, name: str) -> list[dict[str, str]]:
        tables = read_json_lines(self.folder / f"{name}.tables.jsonl")
        headers = {table.text("id"): [_line(column) for column in table.strings("header")] for table in tables}
        examples = []
        for record in read_json_lines(self.folder / f"{name}.jsonl"):
            if (table := record.text("table_id")) not in headers:
                raise record.error("table_id", f"the id of a table in {name}.tables.jsonl")
            header = headers[table]
            prompt = f"table: {' | '.join(header)}\nquestion: {_line(record.text('question'))}"
            examples.append({"prompt": prompt, "reference": query(record.record("sql"), header)})
        return examples


def query(sql: Record, header: list[str]) -> str:
    """Writes a query as WikiSQL's own code does, with the columns' names in `header` in place of ``col0``, ``col1``.

    Raises:
      UserError: an aggregation, column or operator is none, or a value is neither a text nor a number.
    """
    aggregation = AGGREGATIONS[sql.index("agg", len(AGGREGATIONS))]
    text = f"SELECT {aggregation} {header[sql.index('sel', len(header))]} FROM table"
    conditions = [
        f"{header[condition.index('column', len(header))]} {OPERATORS[condition.index('operator', len(OPERATORS))]} "
        f"{condition.scalar('value')}"
        for condition in sql.rows("conds", ("column", "operator", "value"), least=0)
    ]
    return _line(f"{text} WHERE {' AND '.join(conditions)}" if conditions else text)


def _line(text: str) -> str:
    """Returns a text on one line, with single spaces: titles of columns and questions have no-break spaces in them."""
    return " ".join(text.split())
