"""Keys and values in blocks: the types of a cache of bytes. Never imports torch.

Such a cache is uint8 [..., head_dim / 32 * bytes of a block], so the length of its rows tells the type.
"""

from __future__ import annotations

#: Values of one head in a block.
BLOCK = 32
#: Bytes of a block by type; all are laid out and rounded as ggml does.
BLOCK_BYTES = {"q8_0": 34, "q5_1": 24, "q4_0": 18}
#: Types that hold keys and values rotated, see ``reference.rotate``: with so few levels, a head's few large values cost the
#: small ones beside them their precision.
ROTATED = frozenset(("q5_1", "q4_0"))


def row_length(kv_type: str, head_dim: int) -> int:
    """The length of a cache's rows for heads of ``head_dim`` values: bytes of blocks, or values of other types."""
    return head_dim // BLOCK * BLOCK_BYTES[kv_type] if kv_type in BLOCK_BYTES else head_dim


def type_of_rows(row: int, head_dim: int) -> str:
    """The type of a cache of bytes with rows of ``row`` bytes. Raises ValueError if no type has such rows."""
    for name in BLOCK_BYTES:
        if head_dim % BLOCK == 0 and row == row_length(name, head_dim):
            return name
    raise ValueError(f"no KV type stores {head_dim} values in {row} bytes")
