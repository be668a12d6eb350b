"""Chooses the device that a model runs on, and loads the model there.

With ``device="auto"`` a GPU that cannot be used is not an error: the model runs on the CPU, and a warning says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError, UsageError, first_line
from jambacli.runtime.options import DeviceOptions

if TYPE_CHECKING:
    import torch

    from jambacli.gguf.reader import GGUFFile
    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel
    from jambacli.runtime.loader import GetTensor
    from quant.formats import QTensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenDevice:
    """The device to compute on, and why it is the CPU if the machine has a GPU."""

    device: torch.device
    note: str | None = None


def find_device(name: str = "auto") -> ChosenDevice:
    """The device named "auto", "cpu", "cuda" or "cuda:N".

    "auto" is the first GPU if it works, else the CPU, with a note if the machine has a GPU that does not work. Raises
    UsageError for any other name, JambaError for a GPU that does not exist or does not work.
    """
    import torch

    if name == "cpu":
        return ChosenDevice(torch.device("cpu"))
    kind, _, number = name.partition(":")
    if name != "auto" and (kind != "cuda" or (number and not number.isdigit()) or name.endswith(":")):
        raise UsageError("is not one of auto, cpu, cuda, cuda:N", field="device", value=name)
    _use_expandable_segments()
    problem = gpu_problem()
    if name == "auto":
        from jambacli.hardware import nvml

        if problem is None:
            return ChosenDevice(torch.device("cuda", 0))
        return ChosenDevice(torch.device("cpu"), f"{problem}; computing on the CPU" if nvml.gpus() else None)
    if problem is not None:
        raise JambaError(f"needs a GPU: {problem}", field="device", value=name)
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        found = "1 GPU" if count == 1 else f"{count} GPUs"
        raise JambaError(f"does not exist: this machine has {found}, numbered from 0", field="device", value=name)
    return ChosenDevice(torch.device("cuda", index))


def _use_expandable_segments() -> None:
    """Let torch extend blocks of GPU memory, unless the user has set its allocator up: caches and prompts of growing lengths
    would leave gaps between blocks. Linux only (not WSL); torch reads it when it first allocates on a GPU."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    native = sys.platform == "linux" and "microsoft" not in platform.release().lower()
    if native and not any(name in os.environ for name in names):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def gpu_problem() -> str | None:
    """Why torch cannot use a GPU on this machine, None if it can."""
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA; reinstall torch with CUDA support (see pytorch.org)"
    if torch.cuda.is_available():
        return None
    from jambacli.hardware import nvml

    if nvml.gpus():
        return (
            f"the NVIDIA driver is too old for this torch (built for CUDA {torch.version.cuda}), or does not work: "
            "update the driver, or install a torch for an older CUDA"
        )
    return "the NVIDIA driver finds no GPU on this machine"


def load_gguf_on(
    file: GGUFFile,
    options: DeviceOptions = DeviceOptions(),  # noqa: B008
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> JambaModel:
    """The model in an opened GGUF file, loaded as ``load_on`` does; ``advance`` is called with the bytes of each tensor."""
    from jambacli.gguf.jamba_metadata import jamba_config
    from jambacli.runtime.loader import build

    def config() -> JambaConfig:
        return jamba_config(file.metadata, file.tensors)

    def tensor(name: str) -> QTensor:
        weight = file.qtensor(name)
        advance(file.tensors[name].nbytes)
        return weight

    model = load_on(
        options,
        config,
        lambda: {name: (info.format.name, tuple(info.shape)) for name, info in file.tensors.items()},
        lambda device: tensor,
        lambda: build(config(), tensor, source=file),
        ctx=ctx,
        kv_type=kv_type,
        source=file,
    )
    if model.device.type == "cpu":
        from jambacli.runtime.lora import Variants

        adapt = Variants(lambda get: build(config(), get, source=file), file.qtensor)
        model = dataclasses.replace(model, adapt=adapt)
    return with_mode(model, options)


def with_mode(model: JambaModel, options: DeviceOptions) -> JambaModel:
    """The model with the mode of new states that ``options`` asks for, else the mode that it was loaded with."""
    return dataclasses.replace(model, precise=True, mode_measured=False) if options.precise else model


def load_on(
    options: DeviceOptions,
    config: Callable[[], JambaConfig],
    tensors: Callable[[], dict[str, tuple[str, tuple[int, ...]]]],
    tensor: Callable[[torch.device], GetTensor],
    on_cpu: Callable[[], JambaModel],
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    source: Any = None,
) -> JambaModel:
    """Load a model on the device that ``options`` names.

    ``on_cpu`` loads it on the CPU. For a GPU, ``tensors`` gives (format, shape) by GGUF name for the memory plan, and
    ``tensor(device)`` the weights. The plan is for ``ctx`` tokens of ``kv_type`` (default: the model's context, f16).

    "auto" falls back to the CPU, and logs why, if the model does not fit on the GPU or its trial run fails. Raises as
    ``find_device`` and ``load_on_gpu``, UsageError for GPU options without a GPU, JambaError for errors of torch, Triton
    or CUDA.
    """
    import torch

    chosen = find_device(options.device)
    if chosen.note:
        logger.info("%s", chosen.note)
    if chosen.device.type == "cpu":
        _check_no_gpu_options(options)
        return _load_on_cpu(on_cpu)
    from jambacli.hardware.devices import devices
    from jambacli.runtime.cuda.load import load_on_gpu, trial_run

    sizes = config()
    try:
        model = load_on_gpu(
            sizes, tensors(), tensor(chosen.device), chosen.device, options,
            ctx=min(ctx or sizes.context_length, 1 << 24), kv_type=kv_type or "f16",
            free_ram=devices()[0].available, source=source,
        )  # fmt: skip
        logger.info("testing the GPU (the first time, this compiles its kernels) ...")
        trial_run(model)
    except Exception as error:  # errors of Triton and of the C compiler it calls share no base class
        if isinstance(error, UsageError) or (options.device != "auto" and isinstance(error, (JambaError, OSError))):
            raise
        if options.device != "auto":
            raise JambaError(f"failed: {first_line(error)}", field="device", value=options.device) from error
        problem = error if isinstance(error, JambaError) else first_line(error)
    else:
        return model
    # Outside the handler: the error's traceback kept the model's GPU memory alive.
    with contextlib.suppress(RuntimeError):  # after some errors every CUDA call fails
        torch.cuda.empty_cache()
    logger.warning("falling back to the CPU: the GPU cannot be used (%s)", problem)
    return _load_on_cpu(on_cpu)


def _check_no_gpu_options(options: DeviceOptions) -> None:
    asked = {
        "gpu_memory": options.gpu_memory is not None,
        "cpu_experts": options.cpu_experts is not None,
        "cpu_kv": options.cpu_kv,
    }
    fields = tuple(name for name, given in asked.items() if given)
    if fields:
        raise UsageError(f"need{'s' if len(fields) == 1 else ''} a GPU; this model runs on the CPU", field=fields)


def _load_on_cpu(on_cpu: Callable[[], JambaModel]) -> JambaModel:
    """Load on the CPU, and log that it will be slow if the C++ kernels are missing."""
    from jambacli.kernels import cpu

    if not cpu.available():
        logger.info("the C++ kernels are not built; using torch, which is slower. Reinstall to build them")
    return on_cpu()
