"""Finds rows of blocks whose scales overflowed.

A weight too large for a format makes its block's half-precision scale infinite, and the whole block dequantizes to
infinities or NaNs. ggml's quantizers write such blocks without an error; its file quantizer checks them afterwards with
``ggml_validate_row_data``, and ``overflowed_row`` makes the same check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.formats import get_format

if TYPE_CHECKING:
    import numpy as np

#: Byte offsets of the half-precision scales (and minima) in a block, as in ggml's block structs. A format that is not listed
#: has none.
HALVES: dict[str, tuple[int, ...]] = {
    "f16": (0,),
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}


def overflowed_row(blocks: np.ndarray, fmt: str) -> int | None:
    """The first row of ``blocks`` with an infinite or NaN scale, or None.

    ``blocks`` is uint8 [rows, row bytes], C-contiguous, in the format called ``fmt``. A plain float (f32, f16, bf16) is its
    own scale; a format without scales in its blocks (i8) cannot overflow.
    """
    import numpy as np

    row_bytes = blocks.shape[1]
    step = get_format(fmt).block_bytes
    wide = {"f32": ("<u4", 0x7F800000), "bf16": ("<u2", 0x7F80)}
    dtype, infinity = wide.get(fmt, ("<u2", 0x7C00))
    for offset in (0,) if fmt in wide else HALVES.get(fmt, ()):
        count = blocks.size // step
        scales: np.ndarray = np.ndarray((count,), dtype, blocks, offset, (step,))
        exponents = scales & infinity
        if count and exponents.max() == infinity:
            return int((exponents == infinity).argmax()) * step // row_bytes
    return None
