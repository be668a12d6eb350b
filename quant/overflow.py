"""Which bytes of a block are floating-point scales, and rows where one overflowed; knows nothing of how blocks are coded.

A weight too large for a format leaves an infinite half-precision scale behind, and the whole block decodes to infinities
or NaNs. ggml's encoders write such blocks without a word; its quantizer looks for them afterwards, and so does this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.formats import get_format

if TYPE_CHECKING:
    import numpy as np

# Byte offsets, within a block, of its half-precision scales (and minima), as the GGUF specification lays blocks out.
_OFFSETS: dict[str, tuple[int, ...]] = {
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
    """The first row of ``blocks`` (uint8 [rows, row bytes], C-contiguous) with an infinite or NaN scale; None where all
    are finite. f32 and bf16 values count as their own scales; formats without scales (i8) have nothing to find.
    """
    import numpy as np

    row_bytes = blocks.shape[1]
    step = get_format(fmt).block_bytes
    wide = {"f32": ("<u4", 0x7F800000), "bf16": ("<u2", 0x7F80)}
    dtype, infinity = wide.get(fmt, ("<u2", 0x7C00))
    for offset in (0,) if fmt in wide else _OFFSETS.get(fmt, ()):
        count = blocks.size // step
        scales: np.ndarray = np.ndarray((count,), dtype, blocks, offset, (step,))
        exponents = scales & infinity
        if count and exponents.max() == infinity:
            return int((exponents == infinity).argmax()) * step // row_bytes
    return None
