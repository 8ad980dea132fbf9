"""Renamed settings: the new name by the old name."""

RENAMED = {"base": "base_storage"}
