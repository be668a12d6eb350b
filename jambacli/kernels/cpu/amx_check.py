"""Whether AMX works on this machine: a small product in a child process, once, before this process relies on it.

Some machines report AMX and then stop a program that uses it. What the child found is kept in ``JAMBA_HOME/amx.json``, for
this processor, its microcode and this file of the library.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from jambacli.files import atomic_write, jamba_home, open_regular
from jambacli.kernels.cpu.structs import Matrix
from quant.formats import FORMATS
from quant.native.shared_library import SharedLibrary

logger = logging.getLogger(__name__)

FILE = "amx.json"
_MAX_BYTES, _MAX_ENTRIES = 1 << 16, 20
_PRODUCT_SECONDS, _CHILD_SECONDS = 5, 30
_WRONG = 3  # the child's exit status
_ROOT = Path(__file__).resolve().parents[3]


def limit(lib: SharedLibrary) -> None:
    """Keep ``lib``, whose best level is amx, to the level below where AMX fails. Warns when that is found out."""
    path = Path(lib.functions._name)
    key = _key(path)
    known = _remembered()
    problem, is_new = known.get(key), key not in known
    if problem is None:
        problem, is_certain = _ask(path)
        if is_certain:
            _remember({**known, key: problem})
    if problem:
        lib.limit_isa(lib.isa_names[lib.isa_names.index("amx") - 1])
        log = logger.warning if is_new else logger.info
        log("this processor's AMX is not used, since a test product %s; using %s", problem, lib.isa)


def _ask(library: Path) -> tuple[str, bool]:
    """What the child's product did wrong ("": nothing), and whether it would do so again."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("JAMBA_CPU_ISA", None)
    try:
        done = subprocess.run(
            _command(library), env=environment, timeout=_CHILD_SECONDS, capture_output=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be tried ({type(error).__name__})", False
    if done.returncode == 0:
        return "", True
    if done.returncode == _WRONG:
        return "was wrong", True
    if done.returncode == -signal.SIGALRM:
        return f"took more than {_PRODUCT_SECONDS} s", True
    if done.returncode in (-signal.SIGILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE):
        return f"was stopped by {signal.Signals(-done.returncode).name}", True
    return f"could not be tried (status {done.returncode})", False


def _command(library: Path) -> list[str]:
    return [sys.executable, "-m", __name__, str(library)]


def _key(library: Path) -> str:
    """The processor, its microcode and the library's file."""
    names = ("model name", "cpu family", "model", "stepping", "microcode")
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 12).split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    processor = " ".join(fields.get(name, "?") for name in names) if fields else platform.processor()
    try:
        status = library.stat()
    except OSError:
        return processor
    return f"{processor} | {library} {status.st_size} {status.st_mtime_ns}"


def _remembered() -> dict[str, str]:
    try:
        with open_regular(jamba_home() / FILE) as file:
            stored = json.loads(file.read(_MAX_BYTES))
        return {str(key): value for key, value in stored.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _remember(known: dict[str, str]) -> None:
    """Store the newest entries, if the folder can be written."""
    try:
        jamba_home().mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_write(jamba_home() / FILE, durable=False) as file:
            file.write(json.dumps(dict(list(known.items())[-_MAX_ENTRIES:]), indent=1).encode())
    except Exception as error:  # reading and computing work without it
        logger.info("%s was not written: %s", FILE, error)


def products_are_right(functions: ctypes.CDLL) -> bool:
    """Whether products of small integers, which every level computes without rounding, are exact at the level in use.

    The sizes make a product of every shape of tiles and one that adds to another; threads of the library's own take part.
    """
    import numpy as np

    rows, cols, tokens = 75, 544, 41
    random = np.random.default_rng(0)
    x = random.integers(-4, 5, (tokens, cols)).astype(np.float32)
    w = random.integers(-4, 5, (rows, cols)).astype(np.float32)
    expected = x @ w.T
    one = np.full((rows, cols // 32, 1), 1, np.float16).view(np.uint8)  # the factor of a block of 32
    blocks = np.concatenate([one, w.astype(np.int8).view(np.uint8).reshape(rows, -1, 32)], axis=2)
    for name, data in (("bf16", (w.view(np.uint32) >> 16).astype(np.uint16)), ("q8_0", np.ascontiguousarray(blocks))):
        form, out = FORMATS[name], np.zeros((tokens, rows), np.float32)
        weight = Matrix(data.ctypes.data, None, rows, cols, form.row_bytes(cols), form.ggml_type, 0, None)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        status = functions.prefill_linear(
            ctypes.byref(weight),
            *(pointer(x.ctypes.data), size(cols)),
            *(pointer(out.ctypes.data), size(rows)),
            size(tokens),
            1,
            2,
        )
        if status or not np.array_equal(out, expected):
            return False
    return True


def main(library: str) -> int:
    """The child: the exit status says whether the products are right; SIGALRM ends one that does not come back."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(_PRODUCT_SECONDS)
    return 0 if products_are_right(ctypes.CDLL(library)) else _WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
