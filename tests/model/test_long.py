"""Very long prompts: time per token does not grow with the context, and memory grows by the KV cache only."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

from jambacli.runtime.loader import load_gguf
from tests.support.checkpoints import random_model
from tests.support.model_files import write

pytestmark = pytest.mark.slow

TOKENS, PIECE = 32_768, 512


def resident() -> int:
    """Resident bytes of this process without mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("attention", [False, True])
def test_a_prompt_of_32768_tokens(attention: bool, tmp_path: Path) -> None:
    changes = {} if attention else {"attn_layer_period": 64, "attn_layer_offset": 63}
    model = load_gguf(write(tmp_path / "m.gguf", random_model("moe16", seed=0, **changes)))
    state = model.new_state(TOKENS, "f16")
    ids = torch.randint(0, 512, (TOKENS,), generator=torch.Generator().manual_seed(0))
    spans, memory = [], []
    for piece in ids.split(PIECE):
        start = time.process_time()
        logits = model.forward(piece, state)
        spans.append(time.process_time() - start)
        memory.append(resident())
    assert logits is not None and torch.isfinite(logits).all()

    quarter = len(spans) // 4
    first, last = statistics.median(spans[:quarter]), statistics.median(spans[-quarter:])
    grown, expected = memory[-1] - memory[quarter], TOKENS * model.config.kv_bytes_per_token("f16")
    print(f"{first / PIECE * 1e6:.1f} then {last / PIECE * 1e6:.1f} us a token; grown by {grown} of a KV of {expected}")
    assert grown <= expected + 16 * 2**20
    if not attention:
        assert expected == 0
        assert last <= 1.25 * first  # medians of 16 pieces each, processor time
