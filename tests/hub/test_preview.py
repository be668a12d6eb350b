"""What pull says of a model before it is here: whether it fits this machine, and with how much context."""

from __future__ import annotations

from jambacli.hardware.devices import Device
from jambacli.hub.preview import Fit, judge
from jambacli.model.config import JambaConfig

MINI = JambaConfig.from_hf({})
WEIGHTS, EXPERTS = 31_200_000_000, 27_300_000_000
GB = 10**9


def judged(ram: float, card: float, ctx: int | None = None) -> Fit:
    devices = [
        Device(kind, kind, kind, int(n * GB), int(n * GB), 0, False, "") for kind, n in (("cpu", ram), ("cuda", card))
    ]
    return judge(
        "mini", MINI, WEIGHTS, EXPERTS, size=WEIGHTS, left=WEIGHTS, ctx=ctx, kv_type="f16", devices=devices, same=[],
        known=[],
    )  # fmt: skip


def test_experts_in_ram_are_a_fit_at_the_longest_context_that_leaves_room_for_them() -> None:
    """A card of 8.5 GB and RAM that cannot hold the model alone: together they do, though not at the model's 256k."""
    found = judged(ram=30, card=8.5)
    assert found.fits and 32_768 <= found.longest < MINI.context_length
    assert found.plan.ctx == found.longest
    assert [fit.verdict for fit in found.plan.fits] == ["from disk", "experts in RAM"]
    assert judged(ram=30, card=8.5, ctx=found.longest).fits
    longer = judged(ram=30, card=8.5, ctx=found.longest + 1024)
    assert not longer.fits and longer.longest == found.longest


def test_a_card_helps_nothing_where_ram_is_too_small_for_the_experts() -> None:
    found = judged(ram=20, card=8.5)
    assert not found.fits and found.longest == 0
