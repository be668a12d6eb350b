"""The build of the C++ libraries: what is compiled again, and how it fails."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import pytest

from quant import native
from quant.native import build, shared_library


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one library of two sources; skips where there is no compiler."""
    for name in ("CXX", "CXXFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    try:
        build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "quant/native").mkdir(parents=True)
    for name in ("isa_levels.h", "c_interface.h"):
        text = Path(build.__file__).with_name(name).read_text(encoding="utf-8")
        (tmp_path / "quant/native" / name).write_text(text, encoding="utf-8")
    (tmp_path / "pyproject.toml").touch()
    files = {
        "libraries.toml": '[_sums]\nonce = ["first.cpp"]\nscalar = ["second.cpp"]\n',
        "number.h": "constexpr int kNumber = 1;\n",
        "first.cpp": '#include "number.h"\n#include "quant/native/c_interface.h"\nEXPORT int number() { return kNumber; }\n',
        "second.cpp": "namespace JAMBA_VARIANT { int unused; }\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "FOLDERS", {"_sums": "."})
    return tmp_path


def objects(checkout: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (checkout / "build/native/_sums").glob("*.o")}


def number_in(library: Path, copy: Path) -> int:
    copy.write_bytes(library.read_bytes())  # a library of the same path would not be loaded again
    return int(ctypes.CDLL(str(copy)).number())


def test_a_changed_header_compiles_what_includes_it_and_nothing_else(checkout: Path) -> None:
    assert number_in(build.build("_sums"), checkout / "before.so") == 1
    before = objects(checkout)
    assert set(before) == {"first.once.o", "second.scalar.o"}
    build.build("_sums")
    assert objects(checkout) == before
    (checkout / "number.h").write_text("constexpr int kNumber = 2;\n", encoding="utf-8")
    newer = max(before.values()) + 1
    os.utime(checkout / "number.h", ns=(newer, newer))
    assert number_in(build.build("_sums"), checkout / "after.so") == 2
    assert objects(checkout)["second.scalar.o"] == before["second.scalar.o"]


def test_other_flags_compile_everything_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.build("_sums")
    before = objects(checkout)
    monkeypatch.setenv("CXXFLAGS", "-DOTHER")
    build.build("_sums")
    assert all(objects(checkout)[name] > made for name, made in before.items())


def test_failures_are_one_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "second.cpp").write_text("this is not C++\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match=r"^second\.cpp does not compile: .*error.*$"):
        build.build("_sums")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"^there is no C\+\+ compiler called no-such-compiler$"):
        build.build("_sums")


def test_levels_follow_the_target_of_the_compiler(tmp_path: Path) -> None:
    cross = tmp_path / "cross"
    cross.write_text("#!/bin/sh\necho aarch64-unknown-linux-gnu\n", encoding="utf-8")
    cross.chmod(0o755)
    assert build.target_processor((str(cross), "-O3")) == "arm"
    cross.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert build.target_processor((str(cross),)) == build.PROCESSORS.get(platform.machine().lower(), "other")


def test_levels_are_those_of_the_library() -> None:
    lib = native.library()
    if lib is None:
        pytest.skip("the C++ library is not built")
    known = build.levels()
    assert tuple(known) == lib.isa_names
    assert set(known["avx2"].flags) < set(known["amx"].flags)
    assert lib.best_isa in lib.isa_names


def test_a_sanitized_library_lies_beside_the_normal_one_and_is_loaded_by_its_folder(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "first.cpp").write_text(
        '#include "number.h"\n#include "quant/native/c_interface.h"\n'
        "EXPORT int number() { return kNumber; }\n"
        "EXPORT const char* native_isa_name(int) { return nullptr; }\n"
        'EXPORT const char* native_status_text(long long) { return ""; }\n',
        encoding="utf-8",
    )
    normal = build.build("_sums")
    stamp = normal.stat().st_mtime_ns
    sanitized = build.build("_sums", sanitize="undefined")
    assert sanitized == checkout / "build/sanitized/undefined" / normal.name
    assert normal.stat().st_mtime_ns == stamp
    # The sanitizer's runtime is not loaded here, so another library stands in for the sanitized one.
    sanitized.write_bytes(normal.read_bytes())
    monkeypatch.setenv("JAMBA_NATIVE_DIR", build.sanitizer_environment("undefined")["JAMBA_NATIVE_DIR"])
    normal.unlink()
    assert shared_library.load(checkout, "_sums", "number", 1) is not None
    monkeypatch.setenv("JAMBA_NATIVE_DIR", str(checkout / "empty"))
    assert shared_library.load(checkout, "_sums", "number", 1) is None
