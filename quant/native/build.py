"""Compiles the C++ folders of this repository into shared libraries; knows nothing of what is in them.

Each ext-module of pyproject.toml names one folder: every .cpp in it is compiled and linked into one library with a plain
C interface, loaded with ctypes. A file whose name ends in an instruction set (``encode_avx512.cpp``) is compiled with that
set's flags and left out on other processors; which of them runs is decided at run time by the code itself.
``python -m quant.native.build`` rebuilds all of them in place.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# No contraction: ggml-base is built without FMA, and its bytes are the reference.
BASE_FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread", "-Wall"]
X86_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
X86_FLAGS["_vnni"] = [*X86_FLAGS["_avx512"], "-mavx512vnni"]
X86_FLAGS["_bf16"] = [*X86_FLAGS["_vnni"], "-mavx512bf16"]
X86_FLAGS["_amx"] = [*X86_FLAGS["_bf16"], "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
ARM_FLAGS = {"_neon": ["-march=armv8.2-a+dotprod+fp16"]}


def _flags_for(source: Path) -> list[str] | None:
    """Extra flags for one source file, or None when this processor family cannot use it."""
    machine = platform.machine().lower()
    for table, machines in ((X86_FLAGS, ("x86_64", "amd64")), (ARM_FLAGS, ("aarch64", "arm64"))):
        for suffix, flags in table.items():
            if source.stem.endswith(suffix):
                return flags if machine in machines else None
    return []


class BuildNative(build_ext):
    """build_ext over whole folders of C++; a missing compiler makes the package slower, never uninstallable."""

    def get_export_symbols(self, ext: Any) -> list[str]:
        return []  # a ctypes library has no PyInit_

    def build_extension(self, ext: Any) -> None:
        folder = Path(ext.sources[0]).parent
        jobs = [(s, f) for s in sorted(folder.glob("*.cpp")) if (f := _flags_for(s)) is not None]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        # An in-place install (pip install -e) runs this again for every extra: what is up to date is only copied.
        built = folder / output.name
        inputs = [*folder.glob("*.cpp"), *folder.glob("*.h"), Path(__file__)]
        if built.exists() and built.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
            if output.resolve() != built.resolve():
                shutil.copy2(built, output)
            return
        compiler: Any = self.compiler
        headers = [str(h) for h in folder.glob("*.h")]

        def compile_one(job: tuple[Path, list[str]]) -> list[str]:
            source, flags = job
            return compiler.compile(
                [str(source)],
                output_dir=self.build_temp,
                include_dirs=[str(folder)],
                extra_postargs=BASE_FLAGS + flags,
                depends=headers,
            )

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = [name for names in pool.map(compile_one, jobs) for name in names]
            # Linked under a temporary name and renamed: a process that has the old library mapped keeps it whole.
            part = output.with_suffix(".part")
            compiler.link_shared_object(objects, str(part), extra_postargs=["-pthread"], target_lang="c++")
            part.replace(output)
        except CompileError as error:
            print(f"warning: no C++ library for {ext.name} ({error}); the torch path will be used", file=sys.stderr)
            raise


def main() -> None:
    """Rebuild every library in place (for developers; pip does this on install)."""
    from setuptools import Distribution

    dist = Distribution({"name": "jambacli"})
    dist.parse_config_files()
    command = BuildNative(dist)
    command.inplace = True
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    main()
