"""What ``bench`` measures on a GPU: the peak rates of the device, and synthetic models that are made on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jambacli.evaluation.timing import seconds

if TYPE_CHECKING:
    import torch

    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel
    from jambacli.runtime.loader import GetTensor
    from jambacli.runtime.options import DeviceOptions
    from quant.formats import QTensor


def device_name(device: torch.device) -> str:
    """The model name of the processor or the GPU."""
    import torch

    from jambacli.hardware.devices import devices

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return devices()[0].name


def gpu_rates(device: torch.device, size: int = 1 << 30, width: int = 8192) -> tuple[float, str, float]:
    """The peak rates of a GPU, measured.

    Returns bytes per second of a copy of ``size`` bytes (reads and writes both counted), "bf16" or "fp16" (Turing), and FLOP/s
    of a matrix product of ``width`` by ``width`` in that type.
    """
    import torch

    a = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    b = torch.empty_like(a)
    copied = 2 * size / seconds(device, lambda: b.copy_(a), 10)
    bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    dtype, name = (torch.bfloat16, "bf16") if bf16 else (torch.float16, "fp16")
    x, y = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return copied, name, 2 * width**3 / seconds(device, lambda: x @ y, 5)


def synthetic_on(
    options: DeviceOptions,
    config: JambaConfig,
    quant: str,
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> JambaModel:
    """A random model of file type ``quant`` on the device that ``options`` names, made there. See ``device.load_on``.
    ``advance`` is called with the bytes of each tensor that is made."""
    from jambacli.evaluation.synthetic import choices, synthetic_model
    from jambacli.evaluation.synthetic_gpu import GpuTensors
    from jambacli.runtime.device import load_on, with_mode

    def on_cpu() -> JambaModel:
        return synthetic_model(config, quant, advance=advance)

    def tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()}

    def make(device: torch.device) -> GetTensor:
        tensor = GpuTensors(config, quant, device)

        def counted(name: str) -> QTensor:
            weight = tensor(name)
            advance(weight.nbytes)
            return weight

        return counted

    model = load_on(options, lambda: config, tensors, make, on_cpu, ctx=ctx, kv_type=kv_type)
    return with_mode(model, options)
