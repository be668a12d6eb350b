"""Sizes that the GPU's operations share with memory plans (``runtime.cuda.memory``) and time predictions
(``gpu_check.estimate``). Never imports torch."""

from __future__ import annotations

#: Maximum number of rows (of an expert, on average) for which weights are dequantized in registers, not in memory.
FEW_ROWS = 64
#: Values of a dequantized panel of a matrix (the whole output matrix of Mini would take 0.5 GB).
DEQUANTIZED_PANEL_VALUES = 1 << 27
#: Values of a weight that a GPU repacks at once; temporaries take up to eight bytes per value.
REPACK_VALUES = 1 << 24
#: Values of a mask of queries by keys, for cases in which torch's fused attention needs one.
MASK_VALUES = 1 << 24
#: Values of a cache converted at once if attention cannot read keys and values as they are stored.
CONVERT_VALUES = 1 << 24
#: Bytes of each of the two page-locked buffers through which weights, keys and values are uploaded.
PIECE = 32 << 20
#: Keys in a run of a decode step's attention.
SPLIT = 256
#: Tokens in a chunk of the scan; sequences up to twice as long are one chunk.
SCAN_CHUNK = 128


#: The fewest rows of a matrix whose products can take activations of int8. A thread of a smaller one has a row or two, and
#: rounding x would cost it more than it saves.
INT8_ROWS = 2048
#: Groups of 32 values of a row that a warp loads at once in a matrix-vector product.
GROUPS = 8


def tile_shape(n_rows: int, groups: int, *, gated: bool = False, int8: bool = False) -> tuple[int, int]:
    """(rows per thread, warps that share a row) of a matrix-vector product with ``n_rows`` rows of ``groups`` groups.

    ``gated``: the product of two matrices, of each of which a thread has that many rows. More rows per thread load and
    normalize x less often, but leave fewer programs to hide the memory's latency, and take more registers: four rows of two
    matrices take up to all 255, and in some formats more, so they are two. ``int8``: x is rounded, which costs three times as
    much as normalizing it, while rows take fewer registers: four already from 2,048 rows on.

    The bytes that a multiprocessor has requested at any time must be its share of the bandwidth times the latency: 6 KB at
    768 GB/s with 84 multiprocessors, 18 KB at 3.35 TB/s with 132, with a turn of 0.7 us. In one turn a warp requests 0.6 KB
    per row of its threads in Q4_K. From 8,192 rows on (20 to 30 MB), eight or more warps per multiprocessor request 23 KB
    and more: then instructions limit the faster GPU, and at most a tenth of a row's warps may idle at its end. With fewer
    rows the number of turns decides: 2,560 rows of 2,560 values take two warps five turns, 7 KB at a time and 3.5 us, where
    reading takes 1.1; four warps, a fifth of which idle, take 2.1. A few hundred rows (x_proj, k, v) do not fill a GPU, so
    they take eight warps however many idle.
    """
    rows = 4 if n_rows >= (2048 if int8 else 8192) and not gated else 2 if n_rows >= 2048 else 1
    idle = 1.1 if n_rows >= 8192 else 1.25 if n_rows >= 1024 else 2.0
    return rows, next((n for n in (8, 4, 2) if turns(groups, n) * GROUPS * n <= groups * idle), 1)


def turns(groups: int, warps: int) -> int:
    """How often a warp loads from memory and waits along a row."""
    return -(-groups // (GROUPS * warps))
