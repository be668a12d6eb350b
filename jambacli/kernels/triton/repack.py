"""Repacks GGUF blocks into aligned planes, the layout that the GPU kernels read.

Blocks of 18, 34, 110 or 210 bytes do not allow wide loads, so a weight is repacked once, during upload, by torch (on any
device). Every format becomes groups of 32 values along a row in at most four planes, with G = ceil(row / 32) groups and R rows
(output rows of all experts together):

    q  the levels: floats or int8 [R, G * 32]; nibbles uint8 [R, G * 16], where byte j of a group holds value j in its low
       and value j + 16 in its high bits; or two-bit levels uint8 [R, G * 8], sixteen bytes for two groups, where byte j
       holds value j and value j + 16 of the first and then of the second group, lowest bits first
    h  the bits above them: int32 [R, G], bit i for value i; or int32 [2, R, G], one word per half, where value 4 i + b has
       the bits 8 b + 4 + 2 i and the next (modulo 32): rotated right by 2 i, the bits of four values lie above their nibbles
    s  the small integers that scale a group: two bytes in an int16 [R, G] (which ones depends on the format), or an int8
    d  the floating-point factors: a float16 or a pair of them in an int32, per group, super-block or row

Values equal those of the format to the last bit or two, and no format grows by more than 4%.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.kernels.triton.limits import REPACK_VALUES
from quant.formats import QTensor

if TYPE_CHECKING:
    import torch

GROUP = 32
# Kinds of levels.
FLOAT, BYTES, NIBBLES, PAIRS, GRID = range(5)
# Kinds of scales: none; a float32 per row; a float16 per group (with a minimum or without); or, per super-block of 256 values,
# small integers with a float16 factor: scale and minimum of 32 values, of 16, signed scale of 16, of 32.
NONE, ROW, BLOCK, BLOCK_MIN, K32_MIN, K16_MIN, K16, K32 = range(8)


@dataclass(frozen=True)
class Layout:
    """A format's planes: kind of ``levels``, ``high`` bits in plane h, ``zero`` point, kind of ``scales``."""

    levels: int
    high: int = 0
    zero: int = 0
    scales: int = NONE


LAYOUTS: dict[str, Layout] = {
    "f32": Layout(FLOAT),
    "f16": Layout(FLOAT),
    "bf16": Layout(FLOAT),
    "i8": Layout(BYTES, scales=ROW),
    "q8_0": Layout(BYTES, scales=BLOCK),
    "q4_0": Layout(NIBBLES, 0, 8, BLOCK),
    "q4_1": Layout(NIBBLES, 0, 0, BLOCK_MIN),
    "q5_0": Layout(NIBBLES, 1, 16, BLOCK),
    "q5_1": Layout(NIBBLES, 1, 0, BLOCK_MIN),
    "q2_k": Layout(PAIRS, 0, 0, K16_MIN),
    "q3_k": Layout(PAIRS, 1, 4, K16),
    "q4_k": Layout(NIBBLES, 0, 0, K32_MIN),
    "q5_k": Layout(NIBBLES, 1, 0, K32_MIN),
    "q6_k": Layout(NIBBLES, 2, 32, K16),
    "iq4_nl": Layout(GRID, scales=BLOCK),
    "iq4_xs": Layout(GRID, scales=K32),
}

# Values repacked at once on a CPU, so that they stay in its caches.
_CPU_VALUES = 1 << 21


@dataclass(frozen=True)
class Packed(QTensor):
    """A weight in planes: ``shape`` and ``format`` are the GGUF weight's own, ``data`` is plane q as bytes.

    The bytes are not GGUF blocks: only the GPU's operations read them. Planes that a format lacks are plane q, because
    kernels need an address.
    """

    q: torch.Tensor | None = None
    h: torch.Tensor | None = None
    s: torch.Tensor | None = None
    d: torch.Tensor | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the planes."""
        return LAYOUTS[self.format.name]

    @property
    def groups(self) -> int:
        """Groups of 32 values in a row, the last one padded with zeros."""
        return -(-self.shape[-1] // GROUP)

    @property
    def rows(self) -> int:
        """Rows of all experts together."""
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(p.nbytes for p in {id(p): p for p in (self.q, self.h, self.s, self.d) if p is not None}.values())

    def row_blocks(self) -> torch.Tensor:
        """Raises TypeError: a packed weight has no blocks."""
        raise TypeError("a weight in planes has no blocks")

    def planes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, h, s, d."""
        assert self.q is not None
        return (
            self.q,
            self.q if self.h is None else self.h,
            self.q if self.s is None else self.s,
            self.q if self.d is None else self.d,
        )


def packed_bytes(fmt: str, rows: int, n: int) -> int:
    """Bytes that ``rows`` rows of ``n`` values take in planes."""
    layout, groups = LAYOUTS[fmt], -(-n // GROUP)
    float_bytes = 4 if fmt == "f32" else 2
    q = {FLOAT: GROUP * float_bytes, BYTES: GROUP, NIBBLES: 16, PAIRS: 8, GRID: 16}[layout.levels]
    bits = q * 8 + GROUP * layout.high
    bits += {NONE: 0, ROW: 0, BLOCK: 16, BLOCK_MIN: 32, K32_MIN: 20, K16_MIN: 20, K16: 18, K32: 10}[layout.scales]
    return rows * (groups * bits // 8 + (4 if layout.scales == ROW else 0))


def repack(
    w: QTensor, device: torch.device | None = None, send: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Packed:
    """The same weight in planes on ``device`` (default: the device of its blocks), repacked there a piece at a time.

    ``send`` copies a piece of blocks, as bytes, to the device (default: ``Tensor.to``). So a GPU never holds a whole stack of
    experts as blocks and as planes. Raises ValueError for a format without planes.
    """
    import torch

    name = w.format.name
    if name not in LAYOUTS:
        raise ValueError(f"{name} has no GPU kernel")
    layout = LAYOUTS[name]
    device = w.data.device if device is None else device
    if w.data.device == device:
        send = _stay
    elif send is None:

        def send(piece: torch.Tensor) -> torch.Tensor:
            return piece.to(device)

    if layout.levels == FLOAT or name == "i8":
        return _plain(w, device, send)
    rows, n = math.prod(w.shape[:-1]), w.shape[-1]
    groups = n // GROUP
    blocks = w.data.view(rows, n // w.format.block, w.format.block_bytes)

    def new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    q_bytes = {BYTES: GROUP, PAIRS: 8}.get(layout.levels, 16)
    q = new((rows, groups * q_bytes), dtype=torch.int8 if layout.levels == BYTES else torch.uint8)
    h = None
    if layout.high:
        h = new((rows, groups) if layout.high == 1 else (2, rows, groups), dtype=torch.int32)
    s_type = torch.int8 if layout.scales == K32 else torch.int16
    s = new((rows, groups), dtype=s_type) if layout.scales >= K32_MIN else None
    pair = layout.scales in (BLOCK_MIN, K32_MIN, K16_MIN)
    d = new((rows, n // w.format.block), dtype=torch.int32 if pair else torch.float16)
    step = max(1, (REPACK_VALUES if device.type == "cuda" else _CPU_VALUES) // n)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        _SPLITTERS[name](send(blocks[part]), _Rows(q, h, s, d, part))
    return Packed(q.view(torch.uint8).view(-1), w.format, w.shape, None, q, h, s, d)


def select(w: Packed, index: int) -> Packed:
    """The matrix [out, in] of one expert of a stack [experts, out, in]: views, except a plane h of two words per group."""
    n_out = w.shape[1]
    part = slice(index * n_out, (index + 1) * n_out)

    def cut(p: torch.Tensor | None) -> torch.Tensor | None:
        if p is None or p.dim() < 3:
            return None if p is None else p[part]
        return p[:, part].contiguous()  # kernels expect the second words right after the first ones of the same matrix

    return Packed(w.data, w.format, w.shape[1:], None, cut(w.q), cut(w.h), cut(w.s), cut(w.d))


def _stay(piece: torch.Tensor) -> torch.Tensor:
    return piece


def _plain(w: QTensor, device: torch.device, send: Callable[[torch.Tensor], torch.Tensor]) -> Packed:
    import torch
    import torch.nn.functional as F

    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8}
    rows, n = math.prod(w.shape[:-1]), w.shape[-1]
    q = send(w.data).view(dtypes[w.format.name]).view(rows, n)
    if n % GROUP:
        q = F.pad(q, (0, GROUP - n % GROUP))
    d = None if w.scale is None else w.scale.to(device, torch.float32).contiguous().view(-1)
    return Packed(q.view(torch.uint8).view(-1), w.format, w.shape, None, q, None, None, d)


@dataclass(frozen=True)
class _Rows:
    """Some rows of the planes, for writing."""

    q: torch.Tensor
    h: torch.Tensor | None
    s: torch.Tensor | None
    d: torch.Tensor
    part: slice

    def put(
        self,
        *,
        d: torch.Tensor,
        bytes_: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        pairs: torch.Tensor | None = None,
        bit: torch.Tensor | None = None,
        high_pairs: torch.Tensor | None = None,
        word: torch.Tensor | None = None,
        s: torch.Tensor | None = None,
    ) -> None:
        """Store the fields of a format's blocks, for r rows.

        d bytes uint8 [r, ., 2 or 4]; ``bytes_`` plane q as it is; ``levels`` uint8 [r, G, 32] below 16; ``pairs`` and
        ``high_pairs`` below 4; ``bit`` below 2; ``word`` bytes of plane h; s bytes uint8, one or two per group.
        """
        import torch

        rows = d.shape[0]
        self.d[self.part] = d.contiguous().view(self.d.dtype).view(rows, -1)
        if bytes_ is not None:
            self.q[self.part] = bytes_.contiguous().view(self.q.dtype).view(rows, -1)
        if levels is not None:
            self.q[self.part] = (levels[..., :16] | levels[..., 16:] << 4).view(rows, -1)
        if pairs is not None:
            four = pairs.view(rows, -1, 4, 16)
            self.q[self.part] = (four[:, :, 0] | four[:, :, 1] << 2 | four[:, :, 2] << 4 | four[:, :, 3] << 6).view(
                rows, -1
            )
        if bit is not None:
            assert self.h is not None
            self.h[self.part] = _pack_bits(bit)
        if high_pairs is not None:
            assert self.h is not None
            self.h[:, self.part] = _pack_pairs(high_pairs)
        if word is not None:
            assert self.h is not None
            self.h[self.part] = word.contiguous().view(torch.int32).view(rows, -1)
        if s is not None:
            assert self.s is not None
            self.s[self.part] = s.contiguous().view(self.s.dtype).view(rows, -1)


def _pack_pairs(levels: torch.Tensor) -> torch.Tensor:
    """uint8 [r, G, 32] below 4 -> int32 [2, r, G]."""
    import torch

    rows, groups, _ = levels.shape
    four = levels.view(rows, groups, 2, 4, 4).unbind(3)
    packed = four[0] << 4 | four[1] << 6 | four[2].roll(1, -1) | four[3].roll(1, -1) << 2
    return packed.contiguous().view(torch.int32).view(rows, groups, 2).permute(2, 0, 1)


def _pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """uint8 [r, G, 32] below 2 -> int32 [r, G]."""
    import torch

    rows, groups, _ = bits.shape
    eight = bits.view(rows, groups, 4, 8)
    packed = eight[..., 0].clone()
    for i in range(1, 8):
        packed |= eight[..., i] << i
    return packed.contiguous().view(torch.int32).view(rows, groups)


def _shifted(b: torch.Tensor, *shifts: int) -> torch.Tensor:
    """uint8 [..., k] -> [..., len(shifts), k]: the bytes shifted right by each of ``shifts``."""
    import torch

    return torch.stack([b >> shift for shift in shifts], -2)  # a tensor of shifts would wait for the GPU each time


def _nibble_halves(qs: torch.Tensor, run: int) -> torch.Tensor:
    """Super-blocks' nibbles uint8 [r, S, 128] -> levels [r, 8 S, 32]; 32 bytes hold the low levels, then the high ones."""
    rows = qs.shape[0]
    return (_shifted(qs.reshape(rows, -1, run), 0, 4) & 15).reshape(rows, -1, GROUP)


def _low_pairs(qs: torch.Tensor) -> torch.Tensor:
    """Super-blocks' two-bit levels uint8 [r, S, 64] -> [r, 8 S, 32]."""
    rows = qs.shape[0]
    return (_shifted(qs.reshape(rows, -1, 32), 0, 2, 4, 6) & 3).reshape(rows, -1, GROUP)


def _bit_rows(bits: torch.Tensor) -> torch.Tensor:
    """Super-blocks' bits uint8 [r, S, 32], bit k for group k -> [r, 8 S, 32]."""
    return (_shifted(bits, *range(8)) & 1).reshape(bits.shape[0], -1, GROUP)


def _six_bit_scales(packed: torch.Tensor) -> torch.Tensor:
    """The twelve bytes of Q4_K and Q5_K [r, S, 12] -> scale and minimum of every group, uint8 [r, 8 S, 2]."""
    import torch

    head, middle, tail = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat([head & 63, (tail & 15) | head >> 6 << 4], -1)
    minimum = torch.cat([middle & 63, tail >> 4 | middle >> 6 << 4], -1)
    return torch.stack([scale, minimum], -1).view(packed.shape[0], -1, 2)


def _q8_0(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., :2], bytes_=b[..., 2:])


def _four_bits(b: torch.Tensor, out: _Rows) -> None:  # Q4_0 and IQ4_NL already have the plane's order
    out.put(d=b[..., :2], bytes_=b[..., 2:])


def _q4_1(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., :4], bytes_=b[..., 4:])


def _q5_0(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., :2], word=b[..., 2:6], bytes_=b[..., 6:])


def _q5_1(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., :4], word=b[..., 4:8], bytes_=b[..., 8:])


def _q2_k(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., 80:84], pairs=_low_pairs(b[..., 16:80]), s=b[..., :16])


def _q3_k(b: torch.Tensor, out: _Rows) -> None:
    import torch

    low = _shifted(b[..., 96:104], 0, 4).flatten(-2) & 15
    high = _shifted(b[..., 104:108], 0, 2, 4, 6).flatten(-2) & 3
    scale = (low | high << 4).to(torch.int8) - 32
    out.put(d=b[..., 108:110], pairs=_low_pairs(b[..., 32:96]), bit=_bit_rows(b[..., :32]), s=scale.view(torch.uint8))


def _q4_k(b: torch.Tensor, out: _Rows) -> None:
    out.put(d=b[..., :4], levels=_nibble_halves(b[..., 16:], 32), s=_six_bit_scales(b[..., 4:16]))


def _q5_k(b: torch.Tensor, out: _Rows) -> None:
    levels, bit = _nibble_halves(b[..., 48:], 32), _bit_rows(b[..., 16:48])
    out.put(d=b[..., :4], levels=levels, bit=bit, s=_six_bit_scales(b[..., 4:16]))


def _q6_k(b: torch.Tensor, out: _Rows) -> None:
    levels, high = _nibble_halves(b[..., :128], 64), _low_pairs(b[..., 128:192])
    out.put(d=b[..., 208:210], levels=levels, high_pairs=high, s=b[..., 192:208])


def _iq4_xs(b: torch.Tensor, out: _Rows) -> None:
    import torch

    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=b.device)
    high = (b[..., 2:4].unsqueeze(-1) >> pairs & 3).flatten(-2)
    low = torch.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], dim=-1).flatten(-2)
    scale = (low | high << 4).to(torch.int8) - 32
    out.put(d=b[..., :2], bytes_=b[..., 8:], s=scale.view(torch.uint8))


_SPLITTERS: dict[str, Callable[[torch.Tensor, _Rows], None]] = {
    "q8_0": _q8_0,
    "q4_0": _four_bits,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _four_bits,
    "iq4_xs": _iq4_xs,
}
