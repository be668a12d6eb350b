"""Builds the C++ libraries of this repository: ``python -m quant.native.build``, pip's build and training's first use.

A folder's ``libraries.toml`` lists the sources of its libraries: those compiled once, and those compiled again for each
instruction set, with that set's flags (``isa_levels.h``) and its name as JAMBA_VARIANT. The code decides at run time which
of them it enters. A source is compiled again when it, a header it includes or its command has changed.

This file imports nothing of the repository: pip loads it by its path. Environment: CXX, CXXFLAGS, LDFLAGS.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

try:
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import CompileError
except ImportError:  # an installed package builds training's library without setuptools
    bdist_wheel, build_ext, CompileError = object, object, RuntimeError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"_quant": "quant/native", "_kernels": "jambacli/kernels/cpu", "_train": "jambacli/kernels/cpu"}
DEFAULT = ("_quant", "_kernels")

# No contraction: ggml-base is built without FMA, and its bytes are the reference. Integers wrap, as the vector code expects.
# GCC's own headers for AVX-512 set off -Wuninitialized; -Wpsabi is about vectors that only inlined functions pass; clang
# does not know every name of GCC's.
FLAGS = [
    *("-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-DNDEBUG", "-fvisibility=hidden"),
    *("-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi", "-Wno-unknown-warning-option"),
]
PROCESSORS = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}


class BuildError(RuntimeError):
    """A library could not be built; the message is one line."""


@dataclass(frozen=True)
class Level:
    """An instruction set: the processors that can have it, and all compiler flags it needs."""

    processors: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class System:
    """An operating system: the compilers to look for, the flags to compile and to link with."""

    compilers: tuple[str, ...] = ("c++", "g++", "clang++")
    compile_flags: tuple[str, ...] = ("-fPIC", "-pthread")
    link_flags: tuple[str, ...] = ("-pthread",)


# None needs libgomp or libomp: the code enters torch's OpenMP runtime by address. A function whose level libraries.toml lacks
# is reported by the linker (macOS and Windows: by default), not when the library is loaded.
#
# Neither macOS nor Windows has been tried. macOS: Apple clang compiles for the M1 where no flag says otherwise; the -march of a
# level has all that its code uses, so -mcpu is not needed. Windows: clang++ with the libraries of Visual Studio, since MSVC's
# own compiler has no vector types; its C++ runtime is linked in.
SYSTEMS = {
    "linux": System(link_flags=("-pthread", "-Wl,--no-undefined")),
    "darwin": System(),
    "win32": System(("clang++",), ("-fms-runtime-lib=static",), ("-fms-runtime-lib=static", "-Wl,/NOIMPLIB")),
}


def levels() -> dict[str, Level]:
    """The levels of ``isa_levels.h`` by name, in its order."""
    found: dict[str, Level] = {}
    text = (ROOT / "quant/native/isa_levels.h").read_text(encoding="utf-8")
    for name, includes, processors, flags in re.findall(r'LEVEL\((\w+), (\w+), (\w+), "([^"]*)"\)', text):
        below = found[includes].flags if includes != name else ()
        found[name] = Level(processors, (*below, *flags.split()))
    return found


@dataclass(frozen=True)
class Job:
    """One compilation."""

    source: Path
    object: Path
    command: tuple[str, ...]

    def without(self, flags: tuple[str, ...]) -> Job:
        """The same compilation without these flags."""
        return replace(self, command=tuple(part for part in self.command if part not in flags))

    def is_done(self) -> bool:
        """Whether the object exists and is newer than its source and all headers, made by this command."""
        stamp = self.object.with_suffix(".command")
        try:
            if stamp.read_text(encoding="utf-8") != shlex.join(self.command):
                return False
            made = self.object.stat().st_mtime_ns
            listed = self.object.with_suffix(".d").read_text(encoding="utf-8").replace("\\\n", " ")
            inputs = [Path(p.replace("\\ ", " ")) for p in re.split(r"(?<!\\)\s+", listed.partition(": ")[2]) if p]
            return all(p.stat().st_mtime_ns <= made for p in inputs)
        except OSError:
            return False

    def run(self) -> None:
        """Compile; BuildError with the compiler's first complaint."""
        self.object.with_suffix(".command").unlink(missing_ok=True)
        _run(self.command, f"{self.source.relative_to(ROOT)} does not compile")
        self.object.with_suffix(".command").write_text(shlex.join(self.command), encoding="utf-8")


def compiler() -> str:
    """The C++ compiler's command; BuildError where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in named[:1] or _system().compilers:
        if path := shutil.which(candidate):
            return path
    raise BuildError(f"there is no C++ compiler{f' called {named[0]}' if named else ' (g++ or clang++)'}")


def target_processor(compile_with: tuple[str, ...]) -> str:
    """The kind of processor that a compiler makes code for, as ``isa_levels.h`` names it; a cross compiler's is another."""
    done = subprocess.run((*compile_with, "-dumpmachine"), capture_output=True, text=True, check=False)
    machine = done.stdout.partition("-")[0] if done.returncode == 0 else platform.machine()
    return PROCESSORS.get(machine.strip().lower(), "other")


def build(name: str, output: Path | None = None, *, sanitize: str = "", work: Path | None = None) -> Path:
    """Build library ``name`` ("_quant", "_kernels" or "_train") and return its path.

    ``output``: the library's file, by default next to its sources, or in ``sanitized_folder`` for ``sanitize``, the value of
    -fsanitize. ``work``: where objects are kept between builds. Raises BuildError.
    """
    if work is None and not (ROOT / "pyproject.toml").exists():  # an installed package
        with tempfile.TemporaryDirectory(prefix="jamba-build-") as temporary:
            return build(name, output, sanitize=sanitize, work=Path(temporary))
    folder = ROOT / FOLDERS[name]
    output = (
        output
        or (sanitized_folder(sanitize) if sanitize else folder) / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    )
    objects = (work or ROOT / "build" / "native") / (name + (f"-{sanitize.replace(',', '-')}" if sanitize else ""))
    objects.mkdir(parents=True, exist_ok=True)
    cxx = (compiler(), *shlex.split(os.environ.get("CXX", ""))[1:])
    # -O1: with -O3 the unrolled searches take many minutes to compile under a sanitizer.
    checked = ("-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}") if sanitize else ()
    system = _system()
    own_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    flags = (*FLAGS, *system.compile_flags, *checked, *own_flags, f"-I{folder}", f"-I{ROOT}")
    jobs = _jobs(name, folder, objects, (*cxx, *flags))
    if name == "_quant" and sanitize == "thread":
        # A level's searches share nothing between threads and would take many minutes to compile: only rows.cpp and the
        # other sources compiled once are checked.
        jobs = [job if ".once." in job.object.name else job.without(checked) for job in jobs]

    due = [job for job in jobs if not job.is_done()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Job.run, due))
    # The functions of a sanitizer stay undefined until its runtime is loaded.
    link_flags = [flag for flag in system.link_flags if not (sanitize and flag == "-Wl,--no-undefined")]
    link_flags += [*checked, *(str(job.object) for job in jobs), *shlex.split(os.environ.get("LDFLAGS", ""))]
    # Linked under a temporary name and renamed: a process that has the old library mapped keeps it whole.
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(f".{os.getpid()}.part")
    _run((*cxx, "-shared", *link_flags, "-o", str(part)), f"{output.name} does not link")
    part.replace(output)
    return output


def sanitized_folder(sanitize: str) -> Path:
    """Where libraries with these sanitizers are built: JAMBA_NATIVE_DIR names it to load them."""
    return ROOT / "build" / "sanitized" / sanitize.replace(",", "-")


def sanitizer_environment(sanitize: str) -> dict[str, str]:
    """What to set for a program that loads these libraries: their folder, the sanitizers' runtimes, what stops at an error.

    Leaks are not looked for: the interpreter never frees all it has. Teams are the library's own threads, since a sanitizer
    of threads does not understand torch's OpenMP runtime.
    """
    parts = sanitize.split(",")
    names = [{"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}[part] for part in parts]
    command = (compiler(), *shlex.split(os.environ.get("CXX", ""))[1:])
    runtimes = [
        subprocess.run(
            (*command, f"-print-file-name={name}"), capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    return {
        "JAMBA_NATIVE_DIR": str(sanitized_folder(sanitize)),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "JAMBA_CPU_POOL": "own",
    }


def _system() -> System:
    return SYSTEMS.get(sys.platform, System())


def _jobs(name: str, folder: Path, objects: Path, compile_with: tuple[str, ...]) -> list[Job]:
    sources = tomllib.loads((folder / "libraries.toml").read_text(encoding="utf-8"))[name]
    processor = target_processor(compile_with)
    known = levels()
    jobs = []
    for level, listed in sources.items():
        flags: tuple[str, ...] = ()
        if level != "once":
            if known[level].processors not in ("any", processor):
                continue
            flags = (*known[level].flags, f"-DJAMBA_VARIANT={level}")
        for entry in listed:
            source = ROOT / entry[1:] if entry.startswith("/") else folder / entry
            target = objects / f"{'-'.join(Path(entry.lstrip('/')).with_suffix('').parts)}.{level}.o"
            command = (*compile_with, *flags, "-MMD", "-c", str(source), "-o", str(target))
            jobs.append(Job(source, target, command))
    return jobs


def _run(command: tuple[str, ...], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else f"status {done.returncode}")
        raise BuildError(f"{failure}: {reason}")
    if done.stderr:
        print(done.stderr, file=sys.stderr, end="")


class BuildNative(build_ext):
    """setuptools' build_ext for these libraries; without a compiler the package still installs, and is slower."""

    def get_export_symbols(self, ext: Any) -> list[str]:
        """None: a ctypes library has no PyInit function."""
        return []

    def build_extension(self, ext: Any) -> None:
        """Build one of pyproject.toml's ext-modules; setuptools passes over one that is optional and fails."""
        try:
            build(ext.name.rpartition(".")[2], Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            raise CompileError(f"{error}; the torch path will be used") from None


class NativeWheel(bdist_wheel):
    """setuptools' bdist_wheel: one wheel a platform for every version of Python, since ctypes loads the libraries."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no ABI, this platform."""
        return "py3", "none", super().get_tag()[2]


def main() -> None:
    """Build the libraries in place, after their sources were edited; with a sanitizer, in a folder beside the normal ones."""
    parser = argparse.ArgumentParser(prog="python -m quant.native.build", description=main.__doc__)
    parser.add_argument("--train", action="store_true", help="the training kernels too")
    parser.add_argument(
        "--sanitize",
        default="",
        metavar="address|thread|undefined",
        help="for debugging, in a folder of their own; by commas",
    )
    options = parser.parse_args()
    try:
        for name in (*DEFAULT, *(("_train",) if options.train else ())):
            print(build(name, sanitize=options.sanitize).relative_to(ROOT))
        if options.sanitize:
            set_first = (
                f"{key}={shlex.quote(value)}" for key, value in sanitizer_environment(options.sanitize).items()
            )
            print("to load them:", *set_first)
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
