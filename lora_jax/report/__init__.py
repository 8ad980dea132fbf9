"""Reports a sweep from its files alone: tables, charts, one page. Needs no JAX, and matplotlib only to draw."""

from lora_jax.report.page import build_report
from lora_jax.report.rows import Row, load_rows
from lora_jax.report.tables import terminal_table

__all__ = ["Row", "build_report", "load_rows", "terminal_table"]
