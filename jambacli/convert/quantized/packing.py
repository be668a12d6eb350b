"""Small unsigned integers packed into 32-bit words, as compressed-tensors, GPTQ and AWQ store them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def packed_words(count: int, bits: int) -> int:
    """Words that ``count`` values take as one stream of bits: a value may begin in one word and end in the next."""
    return -(-count * bits // 32)


def split_words(count: int, bits: int) -> int:
    """Words that ``count`` values take where each word holds ``32 // bits`` whole values."""
    return -(-count // (32 // bits))


def unpack(words: torch.Tensor, bits: int, count: int, whole: bool = False) -> torch.Tensor:
    """The first ``count`` values of each row: int32 [n, words] -> uint8 [n, count], the lowest bits of a word first.

    A row is one stream of bits, or with ``whole`` each word holds only whole values (which differs for 3, 5, 6, 7 bits).
    """
    import torch

    octets = words.contiguous().view(torch.uint8)
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return ((octets[:, :, None] >> shifts) & mask).reshape(words.shape[0], -1)[:, :count]
    place = torch.arange(count)
    if whole:
        per_word = 32 // bits
        position = place // per_word * 32 + place % per_word * bits
    else:
        position = place * bits
    # At most 8 bits from any bit of a byte lie in two bytes; a last zero byte stands after the last one.
    octets = torch.nn.functional.pad(octets, (0, 1)).to(torch.int32)
    first = position // 8
    pair = octets[:, first] | (octets[:, first + 1] << 8)
    return ((pair >> (position % 8).to(torch.int32)) & mask).to(torch.uint8)
