"""The page in a real browser: starts Chromium and a server, and does what a person does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from jambacli.hub.demo import demo_model_path
from tests.support.braked_server import BRAKE, DICTATED
from tests.support.repository import REPO

_WAIT = float(os.environ.get("JAMBA_BROWSER_WAIT", "240"))  # for machines with much else to do; nothing waits so long


class PageServer:
    """``jamba serve`` with the demo model, which can be killed and started again at the same address."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self.options = home, options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._brake = home.parent / f"{home.name}-brake"
        self._dictated = home.parent / f"{home.name}-dictated"
        self._steps = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "tests.support.braked_server", "serve", str(demo_model_path())]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "JAMBA_HOME": str(self.home)}
        environment |= {BRAKE: str(self._brake), DICTATED: str(self._dictated)}
        with (self.home.parent / f"{self.home.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *self.options],
                env=environment,
                cwd=REPO,
                stdout=log,
                stderr=log,
                text=True,
            )
        until(self._answers, "the server answers", seconds=240)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self.home.parent / f"{self.home.name}.log").read_text()[-3000:])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hold(self, steps: int = 0) -> None:
        """Let the engine take ``steps`` more steps and then stand still."""
        self._steps += 1
        text = f"{steps} {self._steps}"  # another text each time, so that it counts anew
        beside = self._brake.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self._brake)

    def go_on(self) -> None:
        """Let the engine run."""
        self._brake.unlink(missing_ok=True)

    def dictate(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What tables have as their rows from now on, as far as their columns allow it."""
        self._dictated.write_text(json.dumps({"rows": list(rows)}), encoding="utf-8")

    def client(self) -> httpx.Client:
        """Asks it without a browser."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


def until(true: Callable[[], Any], what: str, seconds: float = _WAIT) -> Any:
    """Wait until ``true()`` is; returns what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@contextlib.contextmanager
def browser(width: int = 1440, height: int = 900, *, dark: bool = False, density: float = 1) -> Iterator[Any]:
    """A Chromium without a window. Skips where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    chromium = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-prefers-reduced-motion",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    from selenium.webdriver.chrome.service import Service

    made = selenium.Chrome(options=options, service=Service(driver))
    try:
        made.set_script_timeout(60)
        screen = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": width < 600}
        made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield made
    finally:
        made.quit()


class Page:
    """What a person sees of the page and does with it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    # Looking

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        return list(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        """The texts of elements, without waiting."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())"
        return list(self.driver.execute_script(script, selector))

    def one(self, selector: str, text: str | None = None) -> Any:
        """The first element of a selector, and with a text, once there is one."""

        def found() -> Any:
            script = """return [...document.querySelectorAll(arguments[0])].find((e) => !arguments[1]
                || e.textContent.includes(arguments[1]) || e.getAttribute("aria-label")?.includes(arguments[1]))"""
            return self.driver.execute_script(script, selector, text)

        return until(
            found, f"{selector} {text or ''}: {self.driver.execute_script('return document.body.innerText')[:1500]}"
        )

    def gone(self, selector: str) -> None:
        """Wait until nothing has the selector."""
        until(lambda: not self.all(selector), f"{selector} is gone")

    @property
    def replies(self) -> list[str]:
        """The texts of the replies that are whole."""
        return self.texts(".message.assistant:not(.live) > .text")

    @property
    def questions(self) -> list[str]:
        """The texts of the questions."""
        return self.texts(".message.user .said")

    # Doing

    def open(self, address: str = "/") -> Page:
        """Open the page anew."""
        self.driver.get("about:blank")
        self.driver.get(self.url + address)
        self.one("#composer, dialog")
        # A tab keeps what was gathered in it; here nothing was.
        self.driver.execute_async_script(
            """const done = arguments[arguments.length - 1];
            import("/static/js/store.js").then(({ set }) => { set({ gathered: [], draft: "" }); done(); }, done)"""
        )
        return self

    def click(self, selector: str, text: str | None = None) -> Any:
        """Click an element with the mouse."""
        element = self.one(selector, text)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        self.driver.execute_script("return new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        element.click()
        return element

    def press(self, keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(keys)

    def chord(self, code: str, key: str = "x") -> None:
        """Alt with a key."""
        for kind in ("rawKeyDown", "keyUp"):
            event = {"type": kind, "modifiers": 1, "code": code, "key": key, "windowsVirtualKeyCode": ord(key.upper())}
            self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def fill(self, selector: str, text: str, name: str | None = None) -> None:
        """Write into a field."""
        field = self.one(selector, name)
        field.clear()
        field.send_keys(text)

    def drop(self, *paths: Path) -> None:
        """Drop files onto the page, as from another window."""
        files = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 400, "data": files})

    def ready(self, *names: str) -> None:
        """Wait until sources have been read into text and their tokens counted."""
        row = "[aria-labelledby=sources-title] .row"

        def done() -> bool:
            rows = self.texts(row)
            each = all(any(name in text and ("token" in text or "read" in text) for text in rows) for name in names)
            return each and not self.all(f"{row} .progress")

        until(done, f"{names} are ready")

    def ask(self, text: str, *, wait: bool = True) -> None:
        """Send a message; waits for the whole reply."""
        before = len(self.all(".message.assistant:not(.live)"))
        self.fill("#composer", text)
        self.press("\ue007")  # Enter
        if wait:
            self.answered(before + 1)

    def answered(self, count: int) -> str:
        """Wait until there are so many whole replies; returns the last one."""
        whole = ".message.assistant:not(.live)"
        until(
            lambda: len(self.all(whole)) >= count and not self.all(".live"),
            f"{count} replies: {self.texts('.message')}",
        )
        until(
            lambda: self.driver.execute_script("return document.querySelector('[role=log]').ariaBusy") == "false",
            "it rests",
        )
        return self.texts(whole)[-1]

    def errors(self) -> list[str]:
        """What the console has as errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def axe(page: Page) -> list[str]:
    """What axe-core finds on the screen. Skips without JAMBA_AXE."""
    path = os.environ.get("JAMBA_AXE")
    if not path:
        pytest.skip("needs axe-core: JAMBA_AXE is the path of its axe.min.js (npm pack axe-core)")
    script = Path(path).read_text(encoding="utf-8")
    page.driver.execute_script(f"if (!window.axe) {{ {script} }}")
    run = """const done = arguments[arguments.length - 1];
        axe.run(document, {resultTypes: ["violations"]}).then((r) => done(r.violations.map((v) =>
            `${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(" | ")}`)), (e) => done([String(e)]))"""
    return list(page.driver.execute_async_script(run))
