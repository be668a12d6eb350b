"""The environment variables of the hub library and of its HTTP client, checked before either reads them."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from jambacli.errors import JambaError

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
# Fractions of seconds that were rounded up for the library: the text it got, and what the user set.
_exact: dict[str, tuple[str, float]] = {}
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


def check_environment() -> None:
    """Raise JambaError for a variable that cannot be used; call it before importing huggingface_hub.

    The library takes whole seconds only, and fails at import for others; a fraction is rounded up for it.
    """
    for name in _SECONDS:
        if (text := os.environ.get(name)) and not text.strip().isdecimal():
            try:
                seconds = float(text)
            except ValueError:
                seconds = -1.0
            if not 0 <= seconds < 1e6:
                raise JambaError(f"{name} is {text[:40]!r}, not a number of seconds; correct or unset it")
            whole = str(max(1, -int(-seconds // 1)))
            os.environ[name] = whole
            _exact[name] = (whole, seconds)
    if endpoint := os.environ.get("HF_ENDPOINT"):
        _check_url("HF_ENDPOINT", endpoint, ("http", "https"), "https://huggingface.co")
    for name in _PROXIES:
        for spelled in (name, name.lower()):
            if proxy := os.environ.get(spelled):
                if "://" in proxy:
                    _check_url(spelled, proxy, ("http", "https", "socks5", "socks5h"), "http://127.0.0.1:3128")
                if proxy.startswith("socks") and not _has_socks():
                    raise JambaError(
                        f"{spelled} is a SOCKS proxy, for which a package is missing: pip install 'httpx[socks]', or unset it"
                    )


def seconds(name: str, default: float) -> float:
    """The value of a variable in seconds, as the user set it; ``default`` where it is not set or not a number."""
    text = os.environ.get(name, "")
    rounded, exact = _exact.get(name, ("", default))
    if text and text == rounded:
        return exact
    try:
        return float(text)
    except ValueError:
        return default


def _check_url(name: str, text: str, schemes: tuple[str, ...], example: str) -> None:
    try:
        url = urlsplit(text)
        valid = url.scheme in schemes and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        shown = text.rpartition("@")[2][:80]  # without a password
        raise JambaError(f"{name} is {shown!r}, not a URL like {example}; correct or unset it")


def _has_socks() -> bool:
    import importlib.util

    return importlib.util.find_spec("socksio") is not None
