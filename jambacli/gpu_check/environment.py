"""What a run's figures depend on: the GPU, its driver, torch, Triton and ptxas; and whether one product is right at all."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def machine(device: torch.device) -> dict[str, Any]:
    """The facts of this machine, by name."""
    import torch

    from jambacli.kernels.triton import triton_version

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "triton": full_triton_version() or ".".join(map(str, triton_version() or ())),
    }
    if device.type != "cuda":
        return facts | {"name": "Triton's interpreter on the CPU", "interpreted": True}
    p = torch.cuda.get_device_properties(device)
    from jambacli.hardware import nvml

    gpus = nvml.gpus()
    return facts | {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory": p.total_memory,
        "multiprocessors": p.multi_processor_count,
        "peak_flops": gpus[0].peak_flops if gpus else None,
        "ptxas": ptxas_version(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"),
    }


def full_triton_version() -> str | None:
    """Triton's version with its last number."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def ptxas_version() -> str | None:
    """The release of the assembler that comes with Triton."""
    import triton

    said = _said(str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"), "--version")
    return next((line.split(",")[-1].strip() for line in (said or "").splitlines() if "release" in line), None)


def _said(*command: str) -> str | None:
    """What a program prints, None if it cannot run."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()
