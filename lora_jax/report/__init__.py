"""What a sweep has found, from its files alone: tables, figures, one page. Needs no JAX."""

from lora_jax.report.page import build_report
from lora_jax.report.rows import load_rows
from lora_jax.report.tables import terminal_table

__all__ = ["build_report", "load_rows", "terminal_table"]
