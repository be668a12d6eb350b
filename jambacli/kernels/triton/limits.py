"""How much the GPU's operations take at a time. Knows nothing of the operations themselves, or of torch.

Plans of memory (``model.card_memory``) and predictions of time (``evaluation.gpu_estimate``) count with the same numbers.
"""

from __future__ import annotations

#: Rows up to which weights are expanded in registers, not in memory; of an expert's rows, on average.
FEW_ROWS = 64
#: Values of an expanded panel of a matrix (the whole output matrix of Mini would take 0.5 GB).
PANEL_VALUES = 1 << 27
#: Values of a weight repacked at once on a GPU; temporaries take up to eight bytes each.
REPACK_VALUES = 1 << 24
#: Values of a mask of queries by keys, made where torch has no fused attention for the case.
MASK_VALUES = 1 << 24
#: Values of a cache converted at once where attention does not read keys and values as they are stored.
CONVERT_VALUES = 1 << 24
#: Bytes of one of the two page-locked buffers that weights, and keys and values, go through on their way to a GPU.
PIECE = 32 << 20
#: Keys in a run of a decode step's attention.
SPLIT = 256
#: Tokens in a chunk of the scan; sequences up to twice as long are one chunk.
SCAN_CHUNK = 128


#: Groups of 32 values that a warp takes of a row at once, in a matrix-vector product.
GROUPS = 8


def tile_shape(n_rows: int, groups: int) -> tuple[int, int]:
    """Rows of a thread, and warps that take turns along a row of ``groups``, for a matrix-vector product.

    The more rows of a thread, the less often x is fetched and normed, but the fewer programs there are to hide the
    memory's latency behind.

    What a multiprocessor has asked for at one time must be its share of the bandwidth times the latency: 6 KB at 768 GB/s
    and 84 multiprocessors, 18 KB at 3.35 TB/s and 132, where a turn takes 0.7 us. A turn of a warp asks for 0.6 KB a row of its
    threads in Q4_K and is answered before the next one. From 8,192 rows on (20 to 30 MB) eight and more warps a
    multiprocessor ask for 23 KB and more: there instructions are what is scarce on the faster GPU, and at most a tenth of
    a row's warps may be idle at its end. Fewer rows are a matter of how often a warp waits: 2,560 of 2,560 values took two
    warps five turns, 7 KB at a time and 3.5 us, where reading takes 1.1; four warps, a fifth of which have nothing to do on
    the whole, take 2.1. Some hundred rows (x_proj, k, v) fill no GPU: eight warps, whoever is idle.
    """
    rows = 4 if n_rows >= 8192 else 2 if n_rows >= 2048 else 1
    idle = 1.1 if n_rows >= 8192 else 1.25 if n_rows >= 1024 else 2.0
    return rows, next((n for n in (8, 4, 2) if turns(groups, n) * GROUPS * n <= groups * idle), 1)


def turns(groups: int, warps: int) -> int:
    """How often a warp asks for memory and waits, on its way along a row."""
    return -(-groups // (GROUPS * warps))
