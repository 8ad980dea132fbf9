"""Downloads files, and checks their content where it is known."""

import hashlib
import http.client
import logging
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from lora_jax.data.bounded import LARGEST
from lora_jax.errors import UserError

logger = logging.getLogger("lora_jax")

SECONDS = 60  # a server that sends nothing for so long is given up


def download(url: str, sha256: str | None, largest: int = LARGEST) -> bytes:
    """Returns what `url` holds. Without a `sha256`, its content is not checked.

    Raises:
      UserError: it cannot be downloaded, has more than `largest` bytes, or another SHA-256.
    """
    logger.info("downloading %s", url)
    try:
        with urllib.request.build_opener(_HttpOnly).open(url, timeout=SECONDS) as response:
            content: bytes = response.read(largest + 1)
            if len(content) > largest:
                raise OSError(f"it has more than {largest} bytes")
            if response.length:
                raise OSError(f"the connection ended {response.length} bytes early")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot download {url} ({error or type(error).__name__})") from error
    actual = hashlib.sha256(content).hexdigest()
    if sha256 is not None and actual != sha256:
        raise UserError(f"{url} has the SHA-256 {actual}, expected {sha256}; it is not used")
    return content


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but to HTTP and HTTPS only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise OSError(f"refused, a redirect to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
