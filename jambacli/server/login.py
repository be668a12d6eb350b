"""The page's login, for a server with a key: the key once, and then a cookie that only this server gets back."""

from __future__ import annotations

import hmac
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie

#: The cookie's name.
COOKIE = "jamba_page"
# Seconds that it lasts.
_AGE = 90 * 86_400


def token_of(key: str) -> str:
    """What the cookie of a key holds: not the key itself, and nothing without it."""
    return hmac.new(key.encode(), b"the page of jamba serve", sha256).hexdigest()


def set_cookie(key: str) -> str:
    """The header that sets the cookie."""
    return f"{COOKIE}={token_of(key)}; Path=/; HttpOnly; SameSite=Strict; Max-Age={_AGE}"


def remove_cookie() -> str:
    """The header that removes the cookie."""
    return f"{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"


def has_cookie(header: str, key: str) -> bool:
    """Whether a request's cookies are those of the key."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return False
    return found is not None and hmac.compare_digest(found.value.encode("utf-8", "replace"), token_of(key).encode())
