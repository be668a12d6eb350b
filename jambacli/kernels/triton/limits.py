"""How much the card's operations take at a time: what bounds their scratch memory. Knows nothing of why, or of torch.

Plans of memory count with the same numbers (``model.card_memory``).
"""

from __future__ import annotations

#: Rows up to which weights are expanded in registers, not in memory; of an expert's rows, on average.
FEW_ROWS = 64
#: Values of an expanded panel of a matrix (the whole output matrix of Mini would take 0.5 GB).
PANEL_VALUES = 1 << 27
#: Values of a weight repacked at once on a card; temporaries take up to eight bytes each.
REPACK_VALUES = 1 << 24
#: Values of a mask of queries by keys, made where torch has no fused attention for the case.
MASK_VALUES = 1 << 24
#: Values of a cache converted at once where attention does not read keys and values as they are stored.
CONVERT_VALUES = 1 << 24
#: Keys in a run of a decode step's attention.
SPLIT = 256
#: Tokens in a chunk of the scan; sequences up to twice as long are one chunk.
SCAN_CHUNK = 128
