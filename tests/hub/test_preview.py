"""Whether a model fits this machine, and with how much context, before it is downloaded."""

from __future__ import annotations

from jambacli.hardware.devices import Device
from jambacli.hub.preview import DownloadFit, assess_fit
from jambacli.model.config import JambaConfig

MINI = JambaConfig.from_hf({})
WEIGHTS, EXPERTS = 31_200_000_000, 27_300_000_000
GB = 10**9


def fit_of(ram: float, gpu: float, ctx: int | None = None) -> DownloadFit:
    devices = [
        Device(kind, kind, kind, int(n * GB), int(n * GB), 0, False, "") for kind, n in (("cpu", ram), ("cuda", gpu))
    ]
    return assess_fit(
        "mini", MINI, WEIGHTS, EXPERTS, size=WEIGHTS, to_download=WEIGHTS, ctx=ctx, kv_type="f16", devices=devices, same=[],
        known=[],
    )  # fmt: skip


def test_experts_in_ram_are_a_fit_at_the_longest_context_that_leaves_room_for_them() -> None:
    """A GPU of 8.5 GB and RAM that cannot hold the model alone: together they do, but not at the model's 256k."""
    found = fit_of(ram=30, gpu=8.5)
    assert found.fits and 32_768 <= found.longest_ctx < MINI.context_length
    assert found.plan.ctx == found.longest_ctx
    assert [fit.verdict for fit in found.plan.fits] == ["from disk", "experts in RAM"]
    assert fit_of(ram=30, gpu=8.5, ctx=found.longest_ctx).fits
    longer = fit_of(ram=30, gpu=8.5, ctx=found.longest_ctx + 1024)
    assert not longer.fits and longer.longest_ctx == found.longest_ctx


def test_a_gpu_does_not_help_when_ram_is_too_small_for_the_experts() -> None:
    found = fit_of(ram=20, gpu=8.5)
    assert not found.fits and found.longest_ctx == 0
