"""Chooses how a model decodes on a GPU: with float32 activations, or with activations of int8 where those are faster.

Both ways are measured once, with whole steps of the model itself. The choice is kept in a file, so that later runs make the
same one: the mode is part of a state's identity, and stored states of the two never mix.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

import jambacli
from jambacli.errors import JambaError, first_line
from jambacli.files import atomic_write, jamba_home, read_regular
from jambacli.kernels.triton import triton_version
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.repack import Packed
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.decoder import CudaDecoder

logger = logging.getLogger(__name__)

#: The name of the file of choices, in ``files.jamba_home``.
FILE = "gpu_decode_modes.json"
#: The share of the time with float32 activations that int8 must save: they are less precise.
LEAST_GAIN = 0.03
# Rounds of each way, and the seconds that one should take.
_ROUNDS, _ROUND_SECONDS = 3, 0.03
# At most so many steps a round.
_MOST_STEPS = 16

Measure = Callable[[JambaModel], tuple[float, float]]


def chosen(model: JambaModel, measure: Measure | None = None) -> JambaModel:
    """The model with ``precise`` set to the faster mode of decode, from the file of choices if this model's is known.

    ``measure`` returns the seconds of a step with float32 activations, and with int8 (default: ``step_seconds``; under Triton's
    interpreter, whose times mean nothing, the mode is precise). A failure to measure or to store the choice is logged.
    """
    decoder = model.decoder
    if not isinstance(decoder, CudaDecoder):
        return model
    if not decoder.int8_products():  # wrong on this GPU, or there is nothing to round: then both modes are the same
        return model if not decoder.rounds else dataclasses.replace(model, precise=False)
    if measure is None and interpreted():
        return model
    key = identity(model)
    known = _known().get(key)
    if known is None:
        try:
            exact, rounded = (measure or step_seconds)(model)
        except Exception as error:  # errors of Triton's compiler share no base class
            logger.warning(
                "decode with activations of int8 could not be measured (%s): it uses float32", first_line(error)
            )
            return model
        known = _kept(
            key,
            {
                "gpu": _gpu(model.device),
                "float32_ms": round(exact * 1e3, 4),
                "int8_ms": round(rounded * 1e3, 4),
                "precise": rounded > (1 - LEAST_GAIN) * exact,
            },
        )
    precise = bool(known["precise"])
    logger.info(
        "decode takes %s activations (a token takes %.3g ms with float32, %.3g with int8)",
        "float32" if precise else "int8", known["float32_ms"], known["int8_ms"],
    )  # fmt: skip
    return dataclasses.replace(model, precise=precise)


def step_seconds(model: JambaModel) -> tuple[float, float]:
    """Seconds of a decode step with float32 activations, and with int8: the least of a few rounds, in turns."""
    states = [model.new_state(3 + 1 + _ROUNDS * _MOST_STEPS, precise=precise) for precise in (True, False)]
    token = torch.zeros(1, dtype=torch.int64)

    def seconds(index: int, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            model.forward(token, states[index])
        torch.cuda.synchronize(model.device)
        return (time.perf_counter() - began) / steps

    for index in (0, 1):
        seconds(index, 3)  # launched, recorded, replayed
    one = max(1e-6, seconds(0, 1))
    steps = max(1, min(_MOST_STEPS, int(_ROUND_SECONDS / one)))
    found = [[seconds(index, steps) for index in (0, 1)] for _ in range(_ROUNDS)]
    return min(pair[0] for pair in found), min(pair[1] for pair in found)


def identity(model: JambaModel) -> str:
    """What the choice depends on: GPU, versions, and the formats, shapes and places of the weights."""
    weights = []
    for layer in model.layers:
        for part in (layer.mixer, layer.ffn):
            weights += [
                [name, w.format.name, list(w.shape), isinstance(w, Packed)]
                for name, w in vars(part).items()
                if hasattr(w, "format")
            ]
    versions = [jambacli.__version__, torch.__version__, list(triton_version() or ())]
    text = json.dumps([_gpu(model.device), versions, model.output.format.name, list(model.output.shape), weights])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _path() -> Path:
    return jamba_home() / FILE


def _known() -> dict[str, dict[str, object]]:
    """The stored choices; none if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, JambaError):
        found = json.loads(read_regular(_path()))
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if _is_choice(value)}
    return {}


def _is_choice(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("precise"), bool)
        and all(isinstance(value.get(name), (int, float)) for name in ("float32_ms", "int8_ms"))
    )


def _kept(key: str, choice: dict[str, object]) -> dict[str, object]:
    """Store a choice; returns it, or the one that another process has stored in the meantime."""
    found = _known()
    if key in found:
        return found[key]
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            file.write(json.dumps(found | {key: choice}, indent=1).encode())
    except (OSError, JambaError) as error:
        logger.info("the mode of decode is not kept for the next run (%s)", first_line(error))
    return choice
