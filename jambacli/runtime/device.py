"""Which device ``--device`` means, and a model loaded on it; knows nothing of how weights are placed there.

A card that cannot be used is not an error where nobody asked for one: the CPU computes, and one line says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli import ui
from jambacli.errors import JambaError, UsageError

if TYPE_CHECKING:
    import torch

    from jambacli.gguf.reader import GGUFFile
    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel
    from jambacli.runtime.loader import GetTensor


@dataclass(frozen=True)
class Found:
    """The device that ``--device`` names, and why it is not a card where one was hoped for."""

    device: torch.device
    note: str | None = None


def find_device(wanted: str = "auto") -> Found:
    """The device for ``--device auto|cuda[:N]|cpu``.

    ``auto`` is the first card that works, else the CPU, with a note where there is a card that does not work. Raises
    UsageError for another word, JambaError (naming what is wrong) for a card that is asked for and not there.
    """
    import torch

    if wanted == "cpu":
        return Found(torch.device("cpu"))
    kind, _, number = wanted.partition(":")
    if wanted != "auto" and (kind != "cuda" or (number and not number.isdigit()) or wanted.endswith(":")):
        raise UsageError(f"--device {wanted!r} is none of auto, cpu, cuda, cuda:N")
    problem = card_problem()
    if wanted == "auto":
        from jambacli.hardware import nvml

        if problem is None:
            return Found(torch.device("cuda", 0))
        return Found(torch.device("cpu"), f"{problem}; computing on the CPU" if nvml.cards() else None)
    if problem is not None:
        raise JambaError(f"--device {wanted}: {problem}")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise JambaError(
            f"--device {wanted}: there {'is 1 card' if count == 1 else f'are {count} cards'}, numbered from 0"
        )
    return Found(torch.device("cuda", index))


def card_problem() -> str | None:
    """Why torch cannot use a card here, None where it can."""
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA; install one with it (pip install torch --force-reinstall)"
    if torch.cuda.is_available():
        return None
    from jambacli.hardware import nvml

    if nvml.cards():
        return (
            f"the NVIDIA driver is too old for this torch (built for CUDA {torch.version.cuda}), or does not work: "
            "update the driver, or install a torch for an older CUDA"
        )
    return "there is no NVIDIA card that its driver shows"


def load_gguf_on(file: GGUFFile, wanted: str = "auto", **options: Any) -> JambaModel:
    """The model in an opened GGUF file on the device that ``--device`` names; ``options`` as ``load_on``."""
    from jambacli.gguf.jamba_metadata import jamba_config
    from jambacli.runtime.loader import from_gguf

    return load_on(
        wanted,
        lambda: jamba_config(file.metadata, file.tensors),
        lambda: {name: (info.format.name, tuple(info.shape)) for name, info in file.tensors.items()},
        lambda device: file.qtensor,
        lambda: from_gguf(file),
        source=file,
        **options,
    )


def load_on(
    wanted: str,
    config: Callable[[], JambaConfig],
    tensors: Callable[[], dict[str, tuple[str, tuple[int, ...]]]],
    tensor: Callable[[torch.device], GetTensor],
    on_cpu: Callable[[], JambaModel],
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    gpu_memory: int | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
    source: Any = None,
) -> JambaModel:
    """A model on the device that ``--device`` names: ``on_cpu`` makes it there, else ``tensor(device)`` gives its weights.

    ``tensors`` are (format, shape) by name, to plan with; the other options as ``placement.place``. ``auto`` falls back
    to the CPU, saying why, where the model does not fit on the card or its first token fails there. Raises as
    ``find_device`` and ``load_on_card``, UsageError for options of a card where there is none, JambaError for whatever the
    card's own software raises.
    """
    import torch

    found = find_device(wanted)
    if found.note:
        ui.note(found.note)
    if found.device.type == "cpu":
        if gpu_memory is not None or cpu_experts is not None or cpu_kv:
            raise UsageError("--gpu-memory, --cpu-experts and --cpu-kv are for a card; there is none in use here")
        return _here(on_cpu)
    from jambacli.hardware.devices import devices
    from jambacli.runtime.cuda.load import load_on_card, try_out

    known = config()
    try:
        model = load_on_card(
            known, tensors(), tensor(found.device), found.device, ctx=min(ctx or known.context_length, 1 << 24),
            kv_type=kv_type or "f16", gpu_memory=gpu_memory, cpu_experts=cpu_experts, cpu_kv=cpu_kv,
            ram=devices()[0].available, source=source,
        )  # fmt: skip
        ui.note("trying out the card (the first time, its kernels are compiled) ...")
        try_out(model)
    except Exception as error:  # those of triton, and of the C compiler that it calls, are of no common kind
        if isinstance(error, UsageError) or (wanted != "auto" and isinstance(error, (JambaError, OSError))):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if wanted != "auto":
            raise JambaError(f"--device {wanted}: {line}") from error
    else:
        return model
    # Only here is what was on the card let go of: the error's traceback held it.
    with contextlib.suppress(RuntimeError):  # after some errors every call on a card fails
        torch.cuda.empty_cache()
    ui.warn(f"not on the card: {line}; computing on the CPU")
    return _here(on_cpu)


def _here(on_cpu: Callable[[], JambaModel]) -> JambaModel:
    """The model on the CPU; where that will be slow for want of the C++ kernels, one line says so."""
    from jambacli.kernels import cpu

    if not cpu.available():
        ui.note("torch computes alone, slower: the C++ kernels are not built here; with a C++ compiler, install again")
    return on_cpu()
