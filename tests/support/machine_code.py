"""What the machine code of compiled Triton kernels costs: registers, spills, and the instructions of the main loop.

``python -m tests.support.machine_code CAPABILITY`` compiles the kernels of a 3B's decode step and its scan at their real
sizes with the Triton that is first in the path, and prints a JSON line for each. A process compiles for one capability only:
Triton keeps the first one's kernels.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.gpu_compile import Compiled, compile_for

#: Instructions that move values between threads or wait for them.
_EXCHANGES = r"SHFL|LDS|STS|BAR"


#: Products of a 3B's decode step, and of Mini's: name, format, rows, values of a row. The name says what is fused with it.
PRODUCTS = (
    ("norm + in_proj", "q4_k", 10240, 2560),
    ("x_proj", "q4_k", 192, 5120),
    ("out_proj", "q4_k", 2560, 5120),
    ("norm + gate and up", "q4_k", 8192, 2560),
    ("down in Q6_K", "q6_k", 2560, 8192),
    ("norm + in_proj, int8", "q4_k", 10240, 2560),
    ("out_proj, int8", "q4_k", 2560, 5120),
    ("norm + gate and up, int8", "q4_k", 8192, 2560),
    ("down in Q6_K, int8", "q6_k", 2560, 8192),
    ("norm + in_proj in Q5_K, int8", "q5_k", 10240, 2560),
    ("norm + in_proj in Q8_0, int8", "q8_0", 16384, 4096),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a kernel: registers per thread, bytes of stack (spills), and in its largest loop the instructions, those that
    exchange values between threads, and those that access spilled values."""

    registers: int
    stack: int
    instructions: int
    exchanges: int
    spills: int


def cost(kernel: Compiled) -> Cost:
    """Disassembles a kernel with the programs that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        run = lambda *command: subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout  # noqa: E731
        code = run(tools / "nvdisasm", "-c")
        used = run(tools / "cuobjdump", "-res-usage")
    registers, stack = (int(re.search(rf"{name}:(\d+)", used)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    body = largest_loop(code)
    count = lambda pattern: sum(re.search(pattern, line) is not None for line in body)  # noqa: E731
    return Cost(registers, stack, len(body), count(rf"\b({_EXCHANGES})\b"), count(r"\b(LDL|STL)\b"))


def largest_loop(code: str) -> list[str]:
    """The instructions of the largest loop in the output of nvdisasm."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    body: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(instruction[1])
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if jump and len(lines) - labels.get(jump[1], len(lines)) > len(body):
                body = lines[labels[jump[1]] :]
    return body


def compiled(capability: int) -> dict[str, tuple[Compiled, int]]:
    """Kernels by name, each with the weights (in the scan: steps) that a thread takes in one turn of its loop."""
    import torch

    from jambacli.evaluation.synthetic import random_weight
    from jambacli.gpu_check.parity import packed_on
    from jambacli.kernels.triton.gemv import gemv
    from jambacli.kernels.triton.launch import gemv_tile
    from jambacli.kernels.triton.scan import selective_scan

    found: dict[str, tuple[Compiled, int]] = {}
    for name, fmt, n, k in PRODUCTS:
        # Nothing runs, so a few rows of planes are enough.
        w = dataclasses.replace(packed_on(random_weight(fmt, (8, k)), torch.device("cpu")), shape=(n, k))
        gated, int8 = "gate" in name, "int8" in name
        options: dict[str, Any] = {"norm": torch.zeros(k), "eps": 1e-6} if "norm" in name else {}
        if gated:
            options["up"] = w
        if name.startswith(("out", "down")):
            options["residual"] = torch.zeros(1, n)
        with compile_for(capability) as done:  # as decode launches it; all sizes are multiples of 256 but x_proj's
            gemv(
                torch.zeros(1, k),
                w,
                out=torch.zeros(1, n),
                interleaved=True,
                placed=0 if n % 256 else n,
                int8=int8,
                **options,
            )
        found[name] = done[0], 32 * gemv_tile(w, n, gated=gated, int8=int8).rows * (2 if gated else 1)
    x, bc = torch.zeros(300, 5120), torch.zeros(300, 16)
    with compile_for(capability) as done:
        selective_scan(x, x, x[0], torch.zeros(5120, 16), bc, bc, x[0], x, torch.zeros(5120, 16))
    found["scan without outputs"], found["scan with outputs"] = (done[0], 1), (done[2], 1)
    return found


if __name__ == "__main__":
    import triton

    for name, (kernel, weights) in compiled(int(sys.argv[1])).items():
        found = {"triton": triton.__version__, "capability": int(sys.argv[1]), "kernel": name, "weights": weights}
        print(json.dumps(found | dataclasses.asdict(cost(kernel))), flush=True)
