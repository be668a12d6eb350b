"""Chats on a simulated GPU: the same tokens as on the CPU, and states that move between the two."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.gpu_check.models import relative_error
from tests.support import small_models

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton.interpret import interpreted
from tests.support.simulated_gpu import simulated_gpu

if not interpreted():
    pytest.skip("a simulated GPU runs its kernels in Triton's interpreter", allow_module_level=True)

pytestmark = pytest.mark.slow  # the interpreter takes a second or two per token
TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        two_layers = {"num_hidden_layers": 2, "attn_layer_period": 2, "num_attention_heads": 2}
        patch.setattr(small_models, "SHAPE", small_models.SHAPE | two_layers)
        return small_models.small_file(tmp_path_factory.mktemp("models"), "q8_0")


def go_on(model: Jamba, name: str, n: int, *, resume: bool = True) -> tuple[str, int, torch.Tensor]:
    """Three things about ``n`` greedy tokens after what the session ``name`` holds (or after TEXT): their text, how many
    tokens were read before them, and the logits at the end."""
    options = {"max_tokens": n, "temperature": 0.0}
    with model.session(resume=name) if resume else model.session(name=name) as session:
        said = "".join(session.extend(**options) if resume else session.complete(TEXT, **options))
        assert session.sequence.logits is not None
        return said, session.stats.prefilled_tokens, torch.from_numpy(np.array(session.sequence.logits))


def test_a_session_goes_on_on_the_other_device(path: Path) -> None:
    cpu = Jamba.load(path, device="cpu")
    said, _, expected = go_on(cpu, "all", 9, resume=False)
    with simulated_gpu("late") as gpu:
        there = Jamba.load(path, device="cuda")
        assert there.model.device == gpu.device
        parts = [go_on(there, "moved", 3, resume=False), go_on(cpu, "moved", 3), go_on(there, "moved", 3)]
        assert "".join(text for text, _, _ in parts) == said
        assert [n for _, n, _ in parts[1:]] == [1, 1]  # the last token said, which nothing had read yet
        assert relative_error(parts[-1][2], expected) < 2e-2
        whole, resumed = go_on(there, "whole", 6, resume=False), go_on(there, "half", 3, resume=False)
        resumed = go_on(there, "half", 3)
        assert torch.equal(whole[2], resumed[2])  # within a device, to the bit


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "seed": 4},
        {"temperature": 1.0, "typical_p": 0.8, "logit_bias": {5: 2.0}, "seed": 1},
        {"temperature": 0.7, "repeat_penalty": 1.3, "seed": 2},
    ],
)
def test_a_seed_draws_the_same_tokens(path: Path, options: dict[str, object]) -> None:
    cpu = Jamba.load(path, device="cpu")
    with simulated_gpu("late"):
        there = Jamba.load(path, device="cuda")
        said = []
        for model in (cpu, there):
            with model.session() as session:
                said.append("".join(session.complete("the quick", max_tokens=4, **options)))
        assert said[0] == said[1]
