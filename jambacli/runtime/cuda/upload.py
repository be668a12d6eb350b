"""Copies tensors from host memory to a GPU, through page-locked buffers.

A GPU reads page-locked memory asynchronously and about twice as fast as other memory. If none is available (a low limit, some
virtual machines), ordinary memory is used, which is slower, and a warning says so.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from jambacli.errors import first_line
from jambacli.kernels import reference
from jambacli.kernels.triton.limits import PIECE
from jambacli.kernels.triton.repack import LAYOUTS
from quant.formats import FORMATS, QTensor

logger = logging.getLogger(__name__)
_warned = False


def page_locked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialized page-locked host memory that ``device`` can read; RuntimeError if there is none."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def staging(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialized page-locked host memory, or ordinary memory with a warning (once per process)."""
    global _warned
    try:
        return page_locked(shape, dtype, device)
    except RuntimeError as error:
        if not _warned:
            _warned = True
            logger.warning(
                "no page-locked memory is available (%s): transfers from RAM to the GPU will be slower",
                first_line(error),
            )
        return torch.empty(shape, dtype=dtype)


def with_planes(w: QTensor) -> QTensor:
    """``w``, or its values as f16 on the same device if no GPU kernel reads its format."""
    if w.format.name in LAYOUTS:
        return w
    values = reference.dequantize(w).to(torch.float16)
    return QTensor(values.view(-1).view(torch.uint8), FORMATS["f16"], w.shape)


class Uploader:
    """Copies tensors to a GPU through two buffers: one is filled while the other is being sent."""

    def __init__(self, device: torch.device, piece: int | None = None) -> None:
        self._device, self._piece = device, piece or PIECE
        self._buffers: list[torch.Tensor] = []
        self._sent: list[Any] = [None, None]
        self._next = 0

    def __call__(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of the contiguous tensor ``source`` on the GPU, ordered on its current stream."""
        copy = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        source_bytes, copy_bytes = (x.view(-1).view(torch.uint8) for x in (source, copy))
        if not self._buffers:
            self._buffers = [staging((self._piece,), torch.uint8, self._device) for _ in range(2)]
        for start in range(0, len(source_bytes), self._piece):
            part = source_bytes[start : start + self._piece]
            i, self._next = self._next, 1 - self._next  # alternate across tensors, so that small ones overlap too
            if self._sent[i] is not None:
                self._sent[i].synchronize()  # the buffer's last piece has been sent
            buffer = self._buffers[i][: len(part)]
            buffer.copy_(part)
            copy_bytes[start : start + len(part)].copy_(buffer, non_blocking=True)
            if self._device.type == "cuda":
                self._sent[i] = torch.cuda.Event()
                self._sent[i].record(torch.cuda.current_stream(self._device))
        return copy
