"""What readers of texts ask about them."""


def is_utf8(text: str) -> bool:
    """Returns whether `text` can be written in UTF-8: whether it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str) -> str:
    """Returns `text` in quotes for an error message, cut to 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
