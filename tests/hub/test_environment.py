"""Environment variables that the hub library or its HTTP client cannot use: one line, at once."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.hub import huggingface
from jambacli.hub.environment import check_environment, proxy_for


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "SSL", "HUGGING_FACE")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_ETAG_TIMEOUT", "x"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-3.5"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "nan"),
        ("HF_ENDPOINT", "hub.example.org"),
        ("HF_ENDPOINT", "127.0.0.1:8000"),
        ("HF_ENDPOINT", "ftp://hub.example.org"),
        ("HF_ENDPOINT", "http://"),
        ("HF_ENDPOINT", "http://a:b"),
        ("https_proxy", "gopher://10.0.0.1"),
        ("HTTP_PROXY", "http//127.0.0.1:3128"),
        ("HTTP_PROXY", "http:/127.0.0.1:3128"),
        ("HTTP_PROXY", "127.0.0.1:port"),
        ("HTTPS_PROXY", "127.0.0.1:3128 "),
        ("HTTPS_PROXY", "http://my proxy:3128"),
        ("ALL_PROXY", "socks4://127.0.0.1:1080"),
        ("HF_ENDPOINT", "https://hub.example.org?x=1"),
        ("HF_ENDPOINT", "https://hub example.org"),
        ("HF_TOKEN", "hf_a b"),
        ("HF_TOKEN", "hf_a\nhf_b"),
        ("HF_TOKEN", "hf_\u00fc"),
        ("HUGGING_FACE_HUB_TOKEN", "hf_\x1b"),
        ("HF_HOME", "a\nb"),
        ("HF_HUB_USER_AGENT_ORIGIN", "a\nb"),
        ("SSL_CERT_FILE", "/nonexistent/ca.pem"),
        ("SSL_CERT_FILE", str(Path(__file__).parent)),
        ("SSL_CERT_FILE", __file__),
        ("SSLKEYLOGFILE", "/nonexistent/keys.log"),
    ],
)
def test_what_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(JambaError, match=name) as caught:
        check_environment()
    assert "\n" not in str(caught.value)


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://me:secret@10.0.0.1")
    with pytest.raises(JambaError) as caught:
        check_environment()
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JambaError, match=r"ALL_PROXY is a SOCKS proxy.*httpx\[socks\]"):
        check_environment()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    check_environment()


@pytest.mark.parametrize(("text", "whole"), [("2.5", "3"), ("0.2", "1"), ("10", "10"), ("1e2", "100")])
def test_a_fraction_of_a_second_is_rounded_up(monkeypatch: pytest.MonkeyPatch, text: str, whole: str) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", text)
    check_environment()
    assert os.environ["HF_HUB_ETAG_TIMEOUT"] == whole


@pytest.mark.parametrize("value", ["https://hub.example.org", "http://127.0.0.1:8000", "http://[::1]:80/"])
def test_what_can_be_used_passes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in ("HF_ENDPOINT", "HTTP_PROXY"):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("https_proxy", "10.0.0.1:3128")
    for name, usable in (
        ("HTTP_PROXY", ""),
        ("NO_PROXY", "::1,[::1]:80,*.x"),
        ("HF_TOKEN", " hf_abc\n"),
        ("HF_HOME", "rel"),
    ):
        monkeypatch.setenv(name, usable)
    check_environment()


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret x")
    with pytest.raises(JambaError) as caught:
        check_environment()
    assert "secret" not in str(caught.value)


def test_a_file_of_certificates_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    certifi = pytest.importorskip("certifi")
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    check_environment()


def test_the_proxy_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://hub.example.org") is None
    monkeypatch.setenv("https_proxy", "http://me:secret@10.0.0.1:3128")
    monkeypatch.setenv("no_proxy", "hub.example.net")
    assert proxy_for("https://hub.example.org") == "10.0.0.1:3128"
    assert proxy_for("http://hub.example.org") is None and proxy_for("https://hub.example.net/x") is None


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (NotADirectoryError(20, "Not a directory", "/f/token"), "cannot read its own files: .*/f/token"),
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "not trusted.*SSL_CERT_FILE"),
        (type("LocalProtocolError", (Exception,), {})("Illegal header value b'hf_secret'"), "cannot be made"),
    ],
)
def test_what_no_retry_mends_is_said_at_once(raised: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it tries again"))

    def call() -> None:
        raise raised

    with pytest.raises(JambaError, match=words) as caught:
        huggingface._ask("a/b", None, None, call)
    assert "secret" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://10.0.0.1:3128")
    monkeypatch.setattr("time.sleep", lambda _: None)

    def call() -> None:
        raise RuntimeError("Connection refused")

    with pytest.raises(JambaError, match=r"cannot be reached through the proxy 10\.0\.0\.1:3128: Connection refused"):
        huggingface._ask("a/b", None, None, call)


class _LoginPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def login_page() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _LoginPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_login_page_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch, login_page: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", login_page)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(JambaError, match="but not as a hub does") as caught:
        huggingface.list_repo("someone/model", None)
    assert login_page in str(caught.value) and not waits
