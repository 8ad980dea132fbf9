"""A drawn chart. This module needs no matplotlib, so that the page does not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    name: str  # the file's, without .png
    title: str
    caption: str
    png: bytes
