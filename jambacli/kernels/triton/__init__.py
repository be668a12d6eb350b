"""The model's operations as Triton kernels for CUDA GPUs, and a check that they can run.

Importing this package does not import triton.
"""

from __future__ import annotations

from jambacli.errors import first_line

#: The oldest Triton and compute capability that the tests compile these kernels for.
OLDEST_TRITON = (3, 2)
OLDEST_CAPABILITY = (7, 5)
#: The oldest Triton for Blackwell (compute capability 10.0 and 12.0).
OLDEST_TRITON_BLACKWELL = (3, 3)
#: Distributions that contain Triton: PyPI's, that for Windows, and that of torch's nightly builds.
DISTRIBUTIONS = ("triton", "triton-windows", "pytorch-triton")


def why_not(index: int = 0) -> str | None:
    """Why the Triton kernels cannot run on GPU ``index``, which torch can use; None if they can."""
    import torch

    version = triton_version()
    if version is None:
        return "triton is not installed (pip install 'jambacli[cuda]')"
    if version < OLDEST_TRITON:
        return f"triton {version[0]}.{version[1]} is too old; {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} or newer is needed"
    from jambacli.kernels.triton.interpret import interpreted

    if interpreted():
        return None
    have = torch.cuda.get_device_capability(index)
    if have < OLDEST_CAPABILITY:
        least = f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
        return f"the GPU's compute capability is {have[0]}.{have[1]}; the kernels need {least} or newer"
    if have >= (10, 0) and version < OLDEST_TRITON_BLACKWELL:
        least = f"{OLDEST_TRITON_BLACKWELL[0]}.{OLDEST_TRITON_BLACKWELL[1]}"
        return (
            f"triton {version[0]}.{version[1]} does not know the GPU's compute capability {have[0]}.{have[1]}; "
            f"{least} or newer is needed"
        )
    return start_problem()


def start_problem() -> str | None:
    """Why Triton cannot launch kernels, None if it can. It builds its launchers with a C compiler unless they are cached."""
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # the type of a compiler's failure is Triton's
        return f"triton does not start ({first_line(error)}); it needs gcc or clang, and Python's headers"
    return None


def triton_version() -> tuple[int, int] | None:
    """The installed Triton's version (major, minor), None without Triton."""
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        return None
    for distribution in DISTRIBUTIONS:
        try:
            major, minor = importlib.metadata.version(distribution).split(".")[:2]
            return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return 99, 0  # a custom build without a release number
