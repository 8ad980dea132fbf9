"""The one exception that a person, rather than a programmer, is meant to read."""


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what, why, and what would be accepted."""
