"""Weights: reads and writes base checkpoints and adapters."""
