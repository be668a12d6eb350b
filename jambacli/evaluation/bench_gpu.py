"""What a card can do at best, and a synthetic model's weights made on it; knows nothing of consoles or of what is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel


def device_name(device: torch.device) -> str:
    """What people call the device: the processor's or the card's name."""
    import torch

    from jambacli.hardware.devices import devices

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return devices()[0].name


def card_rates(device: torch.device, size: int = 1 << 30, width: int = 8192) -> tuple[float, str, float]:
    """Bytes a second that a card copies (read and written both counted), its matrix type's name and FLOP/s of it."""
    import torch

    from jambacli.gpu_check.speed import seconds

    a = torch.empty(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    copied = 2 * size / seconds(device, lambda: b.copy_(a), 10)
    bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    dtype, name = (torch.bfloat16, "bf16") if bf16 else (torch.float16, "fp16")
    x, y = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return copied, name, 2 * width**3 / seconds(device, lambda: x @ y, 5)


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic_on(wanted: str, config: JambaConfig, quant: str, **options: Any) -> JambaModel:
    """A random model where ``--device`` says; on a card its weights are made there. ``options`` as ``device.load_on``."""
    from jambacli.evaluation.synthetic import choices, synthetic_model
    from jambacli.evaluation.synthetic_gpu import CardTensors
    from jambacli.runtime.device import load_on

    def on_cpu() -> JambaModel:
        return synthetic_model(config, quant)

    def tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()}

    def make(device: torch.device) -> CardTensors:
        return CardTensors(config, quant, device)

    return load_on(wanted, lambda: config, tensors, make, on_cpu, **options)
