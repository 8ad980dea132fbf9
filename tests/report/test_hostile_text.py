"""Text in records that could be taken for HTML, Markdown, a formula, rich's markup or a terminal's commands."""

import csv
import html.parser
import io

import pytest
from helpers.made_up import write_run
from rich.console import Console

from lora_jax.records import read_run, read_summary, write_summary
from lora_jax.records import write_run as write_record
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.tables import raw_csv

HOSTILE = {
    "an element": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "an attribute": "\" onmouseover='alert(1)' x=\"",
    "the end of the style": "</style></title><svg onload=alert(1)>",
    "a link": "[click](javascript:alert(1)) javascript:alert(1)",
    "control characters": "a\x00b\x1b[31mred\x1b]8;;http://evil\x07b\x9b2J\rc\u2028d",
    "directions": "rank=\u202e8\u2066\u200f",
    "a formula": r"re:\frac{a$b{$c",
    "markup": "[red]a[/red] [/] [link=http://evil]b[/link] :boom: \\\\[bold]",
    "a cell": "a|b\\\\|c\n\nd",
    "a long name": "x" * 10_000,
}
VOID = {"meta", "link", "img"}
ELEMENTS = """html head meta title link style body main h1 h2 div p ul li a b table thead tbody tr th td dl dt dd
figure img figcaption details summary"""


class Page(html.parser.HTMLParser):
    """Checks that every element is closed, and collects elements and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def hostile(tmp_path, request):
    """A sweep with such a text wherever a record has one, and a run that failed."""
    text = request.param
    sweep = tmp_path / "sweep"
    for number, rank in enumerate((4, 8)):
        shared = {"model": text, "task": text, "metric": "accuracy", "targets": text}
        config = {"note": [text, number], text: {text: text}}
        folder = write_run(sweep, {"rank": rank}, config=config, **shared)
        run = read_run(folder).replace(
            name=text, overrides=(f"a={text}{number}", f"b={number}"), versions={text: text}, command=text, commit=text
        )
        write_record(folder, run)
        status = ("finished", "failed")[number]
        write_summary(folder, read_summary(folder).replace(name=text, error=text, status=status))
    return sweep


every_text = pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE, indirect=True)


@every_text
def test_the_page_has_no_element_of_a_record(hostile):
    page = Page(build_report(hostile).read_text())
    assert page.tags <= set(ELEMENTS.split())
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("style", "srcdoc")
        if name in ("href", "src"):
            assert value in ("table.csv", "table.md") or value.startswith("data:")


@every_text
def test_no_text_commands_a_terminal_or_turns_around(hostile):
    build_report(hostile)
    output = io.StringIO()
    Console(file=output, width=200, force_terminal=True, color_system=None).print(terminal_table(load_rows(hostile)))
    files = [(hostile / "report" / name).read_text() for name in ("index.html", "table.md", "table.csv")]
    for text in (output.getvalue(), *files):
        assert not set(text) & set("\x00\x07\x9b\u202e\u2066\u200f\u2028")
        assert "\x1b[31m" not in text and "\x1b]" not in text


@pytest.mark.parametrize("hostile", [HOSTILE["markup"]], indirect=True)
def test_the_terminal_shows_markup_as_text(hostile):
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal_table(load_rows(hostile)))
    shown = console.export_text()
    assert "[red]a[/red]" in shown and ":boom:" in shown and "[link=http://evil]b[/link]" in shown


@every_text
def test_every_line_of_a_markdown_table_has_as_many_cells(hostile):
    build_report(hostile)
    text = (hostile / "report/table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({line.count("|") for line in rows}) == 1
    assert "<" not in text and "](" not in text and len(text) < 5000


@pytest.mark.parametrize("start", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1"])
def test_a_cell_of_text_is_no_formula_and_numbers_stay_numbers(tmp_path, start):
    write_run(tmp_path, {"rank": 4, start: "x"}, targets=start, train_loss=-0.5)
    write_run(tmp_path, {"rank": 8, start: start, "shift": "-1"}, name="b", targets=start, train_loss=1e-9)
    header, *rows = csv.reader(io.StringIO(raw_csv(load_rows(tmp_path))))
    assert not any(cell.startswith(("=", "+", "@", "\t", "\n")) for row in (header, *rows) for cell in row)
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert first["targets"] == f"'{start}" and first["train_loss"] == "-0.5" and second["shift"] == "-1"
