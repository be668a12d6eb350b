"""Shortens the start and the end of a process that is a command's own; knows nothing of commands, models or arguments.

Importing torch makes a million objects that stay. Looking through them for garbage took a quarter of a short command's
time; and a third of a second of that import, the loading of its library, can go on in another thread.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# The libraries of a torch that knows no cards. How others are loaded ahead of torch itself has not been tried.
_PLAIN = {"libtorch_cpu.so", "libtorch_python.so", "libtorch_global_deps.so"}

_own = False
_loader: threading.Thread | None = None


def own_process() -> None:
    """Say that this process is a command's own: what was imported is never looked through for garbage again."""
    global _own
    if not _own:
        _own = True
        atexit.register(gc.freeze)  # nor at the end, where it would be taken apart for nothing


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports that bring torch: no garbage collection meanwhile, nor ever of what they leave in an own process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _own:
            gc.freeze()
        if was_on:
            gc.enable()


def is_loading_torch() -> bool:
    """Whether another thread loads torch's library now: what needs neither torch nor another library goes on meanwhile."""
    return _loader is not None and _loader.is_alive()


def load_torch_ahead(first: Callable[[], object]) -> threading.Thread | None:
    """Begin to load torch's library in another thread, where a processor is free for it; ``import torch`` finds it there.

    ``first`` is called before and imports what will be needed meanwhile: the system loads one library at a time, so
    that whatever loads another later waits. Nothing depends on it: where it does not work, torch's import does all.
    """
    global _loader
    if sys.platform != "linux" or "torch" in sys.modules or len(os.sched_getaffinity(0)) < 2:
        return None
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.submodule_search_locations[0], "lib") if spec and spec.submodule_search_locations else None
    if folder is None or {path.name for path in folder.glob("libtorch_*.so")} != _PLAIN:
        return None
    with importing():
        first()
    _loader = threading.Thread(target=_load, args=(folder,), name="jamba-load-torch")
    try:
        _loader.start()
    except RuntimeError:  # no more threads are allowed here
        _loader = None
    return _loader


def _load(folder: Path) -> None:
    """Load as torch does, and in its order; a library that cannot be loaded is left for torch to complain about."""
    import ctypes

    # Called as a C function: an import, or ctypes.CDLL, would keep the interpreter to itself until all is loaded.
    load = ctypes.CDLL(None).dlopen
    load.argtypes, load.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    load(os.fsencode(folder / "libtorch_global_deps.so"), os.RTLD_NOW | os.RTLD_GLOBAL)
    load(os.fsencode(folder / "libtorch_cpu.so"), os.RTLD_NOW)
