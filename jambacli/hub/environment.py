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
    _check_token()
    _check_certificates()
    for name in ("HF_HUB_USER_AGENT_ORIGIN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE"):
        if not os.environ.get(name, "").isprintable():
            raise JambaError(f"{name} holds a line break or another control character; correct or unset it")
    if endpoint := os.environ.get("HF_ENDPOINT"):
        _check_url("HF_ENDPOINT", endpoint, ("http", "https"), "https://huggingface.co")
    for name in _PROXIES:
        for spelled in (name, name.lower()):
            if proxy := os.environ.get(spelled):
                schemes = ("http", "https", "socks5", "socks5h")
                _check_url(spelled, proxy, schemes, "http://127.0.0.1:3128", host_alone="://" not in proxy)
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


def proxy_for(url: str) -> str | None:
    """The proxy that requests to ``url`` go through, without a password; None if they go through none."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy.rpartition("//")[2].rpartition("@")[2]


def _check_token() -> None:
    """Raise JambaError for a token that no request can carry. Line ends around it are left to the library."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        if not all("!" <= c <= "~" for c in token):
            raise JambaError(
                f"{name} holds a space, a line break or a letter that no token has; copy it again, or unset it"
            )


def _check_certificates() -> None:
    """Raise JambaError for a file of certificates, or of keys to log, that the TLS library would fail on."""
    if path := os.environ.get("SSL_CERT_FILE"):
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            raise JambaError(f"SSL_CERT_FILE: {path} holds no certificates; correct or unset it") from error
        except OSError as error:
            raise JambaError(f"SSL_CERT_FILE: cannot read {path}: {error.strerror}; correct or unset it") from error
    if (path := os.environ.get("SSLKEYLOGFILE")) and not os.path.isdir(os.path.dirname(path) or "."):  # noqa: PTH112, PTH120
        raise JambaError(f"SSLKEYLOGFILE: {path} cannot be written: its folder does not exist; correct or unset it")


def _check_url(name: str, text: str, schemes: tuple[str, ...], example: str, *, host_alone: bool = False) -> None:
    """``host_alone``: the text is HOST:PORT, without a scheme."""
    try:
        url = urlsplit(f"http://{text}" if host_alone else text)
        valid = url.scheme in schemes and bool(url.hostname) and (url.port or 1) > 0
        valid = valid and text.isprintable() and " " not in text.strip() and not (url.query or url.fragment)
        valid = valid and not (host_alone and url.path.strip("/"))
    except ValueError:
        valid = False
    if not valid:
        shown = text.rpartition("@")[2][:80]  # without a password
        raise JambaError(f"{name} is {shown!r}, not a URL like {example}; correct or unset it")


def _has_socks() -> bool:
    import importlib.util

    return importlib.util.find_spec("socksio") is not None
