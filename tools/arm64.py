"""Runs this checkout under emulation of an arm64 processor: ``python -m tools.arm64 FOLDER -m jambacli run "..."``.

The first call puts Python, torch and the other requirements for arm64 into FOLDER (about 1 GB), and every call builds the C++
libraries for it. Needs Debian's apt-get and dpkg-deb, qemu-user and g++-aarch64-linux-gnu. Importing torch takes a minute.
JAMBA_ARM64_CPU: the processor as qemu names it (max; cortex-a76 has dot products, cortex-a53 has not).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from quant.native import build

# The processor's Python and what its modules load.
_PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1"),
    *("libcrypt1", "libdb5.3", "libncursesw6", "libtinfo6", "libreadline8"),
)
# PyPI's torch 2.13 for arm64 needs CUDA's libraries.
_TORCH = "torch==2.8.0"
_TORCH_NEEDS = ("sympy", "networkx", "jinja2", "fsspec", "typing_extensions", "filelock")
_TESTS_NEED = ("pytest", "pytest-timeout", "hypothesis")


def main(arguments: list[str]) -> int:
    """Prepare the folder, build, run Python with ``arguments[1:]``; returns its exit status."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0]).resolve()
    python = folder / "root/usr/bin/python3.11"
    if not python.exists():
        _unpack_python(folder)
    if not (folder / "site/torch").exists():
        _install(folder / "site")
    os.environ["CXX"] = "aarch64-linux-gnu-g++"
    for name in build.DEFAULT:
        output = build.ROOT / build.FOLDERS[name] / f"{name}.cpython-311-aarch64-linux-gnu.so"
        build.build(name, output, work=folder / "objects")
    environment = {**os.environ, "PYTHONPATH": f"{build.ROOT}:{folder / 'site'}"}
    emulator = ["qemu-aarch64", "-cpu", os.environ.get("JAMBA_ARM64_CPU", "max"), "-L", str(folder / "root")]
    return subprocess.run([*emulator, str(python), *arguments[1:]], env=environment, check=False).returncode


def _unpack_python(folder: Path) -> None:
    """Debian's packages for arm64, unpacked with a list of packages of their own: this system's stays as it is."""
    state, cache, packages = folder / "apt/state", folder / "apt/cache", folder / "packages"
    for path in (state / "lists/partial", cache / "archives/partial", packages, folder / "root"):
        path.mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": state,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": cache,
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *_PACKAGES], cwd=packages, check=True)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True)


def _install(site: Path) -> None:
    """Wheels for arm64 by this machine's pip."""
    project = tomllib.loads((build.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [name for name in project["dependencies"] if not name.startswith("torch")]
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    version = ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), *platforms, *version]
    subprocess.run([*pip, *needed, *_TORCH_NEEDS, *_TESTS_NEED], check=True)
    subprocess.run([*pip, "--no-deps", _TORCH], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
