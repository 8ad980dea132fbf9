"""What readers of texts ask about them."""


def is_utf8(text: str) -> bool:
    """Returns whether `text` can be written in UTF-8: whether it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
