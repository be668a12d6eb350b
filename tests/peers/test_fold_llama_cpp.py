"""A file with rotated heads in llama.cpp: it loads and computes what the original does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.peers.test_model_llama_cpp import run_peer
from tests.quantize.test_fold import rotated
from tests.support.small_models import small_file

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("experts", [1, 4])
def test_llama_cpp_computes_the_same_with_rotated_heads(tmp_path: Path, experts: int) -> None:
    source = small_file(tmp_path, "f32", experts)
    target = rotated(source, tmp_path / "rotated.gguf")
    ids = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(1))
    first, second = (run_peer(path, ids, len(ids)) for path in (source, target))
    assert (first - second).norm() < 1e-4 * first.norm()
