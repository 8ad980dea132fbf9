"""Examples, tokens and batches; the tasks themselves are in ``data/tasks/``."""
