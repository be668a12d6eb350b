"""The comparisons at real sizes that only a GPU runs, here at small ones: they hold, and they notice a wrong product."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from jambacli.gpu_check import parity

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

CPU = torch.device("cpu")


def test_every_kind_of_comparison_holds() -> None:
    assert parity.tiled_product("q4_k", "norm", 2, 2, 20, 512, CPU) < 1e-4
    assert parity.many_rows("q8_0", 17, 32, 256, True, CPU) < 2e-2  # the interpreter truncates to bf16
    assert parity.differing_runs("q8_0", 17, 32, 256, False, CPU) == 0
    assert parity.many_experts(9, 256, 256, CPU) < parity.HALF


def test_they_notice_a_wrong_row_and_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels.triton import gemm, gemv

    plain = gemv.gemv
    monkeypatch.setattr(gemv, "gemv", lambda *a, **k: plain(*a, **k).roll(1, 1))
    assert parity.tiled_product("q4_k", "plain", 2, 2, 20, 512, CPU) > 0.1
    monkeypatch.setattr(gemm, "gemm", lambda x, *_, **__: torch.rand(len(x), 32))
    assert parity.differing_runs("q8_0", 17, 32, 256, False, CPU) == 19


def test_cases_at_real_sizes_cover_the_tiles_of_a_3b() -> None:
    from jambacli.kernels.triton.limits import tile_shape

    names = [case.name for case in parity.device_cases()]
    assert len(set(names)) == len(names)
    for rows, groups, gated in (
        (10240, 80, False),
        (192, 160, False),
        (2560, 160, False),
        (8192, 80, True),
        (2560, 256, False),
    ):
        tile = tile_shape(rows, groups, gated=gated)
        assert any(f"{tile[0]} rows a thread, {tile[1]} warps" in name for name in names), (rows, tile)
