"""Bytes on their way between the computer's memory and a card; knows nothing of what they mean.

A card reads page-locked memory by itself, twice as fast as other memory, while the processor goes on. There may be none to
have (a small limit, a virtual machine): then ordinary memory does the same, slower, and one line says so.
"""

from __future__ import annotations

from typing import Any

import torch

from jambacli import ui
from jambacli.kernels.triton.limits import PIECE

_warned = False


def page_locked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialized memory here that ``device`` can read by itself; RuntimeError where there is none."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def staging(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Page-locked memory where there is any, else ordinary memory, with a line that says so, once."""
    global _warned
    try:
        return page_locked(shape, dtype, device)
    except RuntimeError as error:
        if not _warned:
            _warned = True
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            ui.warn(f"there is no page-locked memory to have ({line}): what stays in RAM reaches the card more slowly")
        return torch.empty(shape, dtype=dtype)


class Uploader:
    """Copies tensors to a card through two buffers: one is filled while the other is on its way."""

    def __init__(self, device: torch.device, piece: int | None = None) -> None:
        self._device, self._piece = device, piece or PIECE
        self._buffers: list[torch.Tensor] = []
        self._sent: list[Any] = [None, None]
        self._next = 0

    def __call__(self, source: torch.Tensor) -> torch.Tensor:
        """The contiguous tensor ``source`` on the card, in the order of the card's present stream."""
        there = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        bytes_here, bytes_there = (x.view(-1).view(torch.uint8) for x in (source, there))
        if not self._buffers:
            self._buffers = [staging((self._piece,), torch.uint8, self._device) for _ in range(2)]
        for start in range(0, len(bytes_here), self._piece):
            part = bytes_here[start : start + self._piece]
            slot, self._next = self._next, 1 - self._next  # in turn over all tensors: small ones overlap too
            if self._sent[slot] is not None:
                self._sent[slot].synchronize()  # what lay there has left
            buffer = self._buffers[slot][: len(part)]
            buffer.copy_(part)
            bytes_there[start : start + len(part)].copy_(buffer, non_blocking=True)
            if self._device.type == "cuda":
                self._sent[slot] = torch.cuda.Event()
                self._sent[slot].record(torch.cuda.current_stream(self._device))
        return there
