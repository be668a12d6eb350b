"""Huge pages under keys and values: asked of the kernel for large caches, and only for those."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from jambacli.hardware.huge_pages import LEAST_BYTES, prefer_huge_pages
from jambacli.model.state import KVCache

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not SWITCH.exists(), reason="only Linux kernels with huge pages"
)


def has_huge_flag(address: int) -> bool:
    """Whether the mapping of this process at ``address`` has the flag of MADV_HUGEPAGE."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the address is not mapped")


def test_a_large_cache_is_advised_when_it_grows_and_keeps_its_tokens() -> None:
    cache = KVCache(2, 128, torch.float16, torch.device("cpu"))
    cache.reserve(200, 0, 1 << 20)
    cache.k[:200] = 3.0
    tokens = 8 * LEAST_BYTES // (2 * 128 * 2)
    assert cache.reserve(tokens, 200, 1 << 20)
    assert (cache.k[:200] == 3.0).all()
    for x in (cache.k, cache.v):
        assert has_huge_flag(x.data_ptr() + x.nbytes // 2)


def test_small_buffers_keep_small_pages() -> None:
    x = torch.empty(LEAST_BYTES // 2, dtype=torch.uint8)
    assert not prefer_huge_pages(x.data_ptr(), x.nbytes)
