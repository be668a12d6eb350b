"""The program tesseract: whether it is installed, with which languages, and the recognition of one image by it.

It runs as a child with limits of time, memory and output, and where the system allows without a network.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import locale
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jambacli.cache.ocr_cache import OcrVariant, Recognized
from jambacli.errors import UsageError

#: Limits of the recognition of one page.
PAGE_SECONDS, PAGE_MEMORY, PAGE_OUTPUT = 180, 2 << 30, 32 << 20
HOW_TO_INSTALL = (
    "install tesseract (apt install tesseract-ocr, brew install tesseract, winget install UB-Mannheim.TesseractOCR)"
)
_WINDOWS = r"C:\Program Files\Tesseract-OCR\tesseract.exe"
# More installed languages than these are not all tried on every page.
_FEW = 3
_NOT_LANGUAGES = frozenset(("osd", "equ", "snum"))
#: Languages of a locale by their names in tesseract.
_NAMES = {
    "ar": "ara", "bg": "bul", "ca": "cat", "cs": "ces", "da": "dan", "de": "deu", "el": "ell", "en": "eng", "es": "spa",
    "et": "est", "fa": "fas", "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind",
    "it": "ita", "ja": "jpn", "ko": "kor", "lt": "lit", "lv": "lav", "nb": "nor", "nl": "nld", "no": "nor", "pl": "pol",
    "pt": "por", "ro": "ron", "ru": "rus", "sk": "slk", "sl": "slv", "sr": "srp", "sv": "swe", "th": "tha", "tr": "tur",
    "uk": "ukr", "vi": "vie", "zh": "chi_sim", "zh_tw": "chi_tra", "zh_hk": "chi_tra",
}  # fmt: skip


@dataclass(frozen=True)
class Tesseract:
    """The installed program. ``languages``: without those of its own use. ``turns``: it can tell how a page is turned."""

    program: str
    version: str
    languages: tuple[str, ...]
    turns: bool

    def variant(self, choice: str) -> OcrVariant:
        """How pages are recognized for ``choice``: "auto" or languages such as "deu+eng". Raises UsageError for languages that
        are not installed."""
        if choice == "auto":
            return OcrVariant("+".join(self._fitting()), self.version)
        wanted = [_NAMES.get(each.strip().lower(), each.strip()) for each in choice.split("+")]
        missing = [each for each in wanted if each not in self.languages]
        if missing:
            raise UsageError(
                f"is no language of tesseract here ({', '.join(missing)}); installed: {', '.join(self.languages) or 'none'}",
                field="ocr",
                value=choice,
            )
        return OcrVariant("+".join(dict.fromkeys(wanted)), self.version)

    def _fitting(self) -> list[str]:
        """The user's language and English; all that are installed if they are few."""
        user = _user_language()
        plain = [each for each in self.languages if "/" not in each]
        first = [each for each in (user, "eng") if each in plain]
        return list(dict.fromkeys([*first, *(plain if len(plain) <= _FEW or not first else [])]))[
            : max(_FEW, len(first))
        ]


def _user_language() -> str | None:
    name = next((value for key in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(key))), None)
    name = (name or locale.getlocale()[0] or "").split(".")[0].lower()
    return _NAMES.get(name) or _NAMES.get(name.split("_")[0])


def tesseract() -> Tesseract | None:
    """The installed program; None if there is none that runs and has a language."""
    program = shutil.which("tesseract") or (_WINDOWS if sys.platform == "win32" and Path(_WINDOWS).exists() else None)
    return _asked(program) if program is not None else None


@functools.cache
def _asked(program: str) -> Tesseract | None:
    said = [_output(program, argument) for argument in ("--version", "--list-langs")]
    if said[0] is None or said[1] is None:
        return None
    version = re.search(r"tesseract v?([0-9][\w.-]*)", said[0])
    listed = [line.strip() for line in said[1].splitlines()[1:] if re.fullmatch(r"[\w/.-]+", line.strip())]
    languages = tuple(sorted(each for each in listed if each not in _NOT_LANGUAGES))
    if version is None or not languages:
        return None
    return Tesseract(program, version[1][:40], languages, "osd" in listed)


def _output(program: str, argument: str) -> str | None:
    try:
        done = subprocess.run(
            [program, argument],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=20,
            env=_environment(),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout or done.stderr).decode("utf-8", "replace")


def _environment() -> dict[str, str]:
    kept = ("PATH", "TESSDATA_PREFIX", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
    return {**{key: os.environ[key] for key in kept if key in os.environ}, "LC_ALL": "C", "OMP_THREAD_LIMIT": "1"}


class OcrFailure(Exception):
    """Why a page was not recognized."""


class Recognition:
    """The recognition of one image, which is running."""

    def __init__(self, found: Tesseract, languages: str, image: Path, dpi: int) -> None:
        """``image``: a file, which is removed at the end. Raises OcrFailure when the program does not start."""
        self._image, self._out = image, image.with_suffix(".tsv")
        self._err = image.with_suffix(".err")
        command = [found.program, str(image), "stdout", "-l", languages, "--dpi", str(dpi)]
        command += ["--psm", "1" if found.turns else "3", "-c", "tessedit_create_tsv=1"]
        self._began = time.monotonic()
        try:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=_environment(),
                    preexec_fn=_limit if sys.platform != "win32" else None,  # noqa: PLW1509 - the worker has one thread
                )
        except OSError as error:
            self._remove()
            raise OcrFailure(f"tesseract did not start: {error.strerror or error}") from error

    def finish(self, alive: Callable[[], None], seconds: float) -> Recognized:
        """The page's text. ``alive`` is called while it waits. Raises OcrFailure."""
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._process.wait(timeout=min(2.0, seconds))
                    break
                alive()
                if time.monotonic() - self._began > seconds:
                    raise OcrFailure(f"tesseract took longer than {seconds:.0f} s")
            if code:
                raise OcrFailure(self._why(code))
            return _recognized(self._out.read_bytes())
        finally:
            self.stop()

    def stop(self) -> None:
        """End it, if it runs, and remove its files."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._remove()

    def _remove(self) -> None:
        for path in (self._image, self._out, self._err):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _why(self, code: int) -> str:
        if code < 0:
            limits = {-getattr(signal, name, 0): name for name in ("SIGXCPU", "SIGXFSZ", "SIGKILL")}
            return "tesseract went beyond its limits" if code in limits else f"tesseract crashed (signal {-code})"
        with self._err.open("rb") as file:
            said = file.read(2000).decode("utf-8", "replace")
        line = next((text for each in said.splitlines() if (text := " ".join(each.split()))), "")
        line = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line)[:120]
        return f"tesseract failed ({line or f'exit code {code}'})"


def _limit() -> None:
    """In the child, before the program starts."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (PAGE_SECONDS, PAGE_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (PAGE_MEMORY, PAGE_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_OUTPUT, PAGE_OUTPUT))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            c_library = ctypes.CDLL(None)
            # A network of its own, with nothing in it; not every system allows it.
            if c_library.unshare(0x40000000) != 0:
                c_library.unshare(0x50000000)
            c_library.prctl(1, signal.SIGKILL)  # it ends with the worker


def _recognized(tsv: bytes) -> Recognized:
    """The text of tesseract's table of words. Raises OcrFailure when it is none."""
    lines = tsv.decode("utf-8", "replace").split("\n")
    if not lines[0].startswith("level\tpage_num"):
        raise OcrFailure("tesseract answered with something else than a table of words")
    text: list[str] = []
    place: tuple[str, ...] = ()
    total = weight = 0.0
    for line in lines[1:]:
        fields = line.rstrip("\r").split("\t", 11)
        if (
            len(fields) < 12
            or fields[0] != "5"
            or not (word := "".join(c for c in fields[11] if c.isprintable()).strip())
        ):
            continue
        with contextlib.suppress(ValueError):
            sure = min(100.0, max(0.0, float(fields[10])))
            total, weight = total + sure * len(word), weight + len(word)
        at = tuple(fields[1:5])
        if text:
            text.append(" " if at == place else "\n" if at[:3] == place[:3] else "\n\n")
        text.append(word)
        place = at
    return Recognized("".join(text), total / weight if weight else 0.0)
