"""The exception for errors of the user, as opposed to errors of the program."""


class UserError(ValueError):
    """The input cannot be used. The message names the key, its value, and what would be accepted."""
