"""Settings of earlier versions, and what they are called today."""

RENAMED = {"base": "base_storage"}
