"""The devices of this machine: memory, cores, stored speeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from jambacli.hardware import devices


def test_a_measured_speed_is_stored_and_used() -> None:
    before = devices.devices()[0]
    assert not before.measured and before.flops > 0
    devices.remember_speed(before.key, 1.25e12)
    after = devices.devices()[0]
    assert (after.measured, after.flops) == (True, 1.25e12)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"prefill_flops": 3}', '{"prefill_flops": {"cpu": "fast", "x": -1, "y": NaN}}', "[" * 9999],
)
def test_a_damaged_speed_file_is_no_error(own_home: Path, content: str) -> None:
    own_home.mkdir()
    (own_home / devices.SPEEDS_FILE).write_text(content)
    assert devices.remembered_speeds() == {}
    devices.remember_speed("cpu", 2.0)
    assert devices.remembered_speeds() == {"cpu": 2.0}


def test_memory_and_cores_agree_with_psutil() -> None:
    import psutil

    cpu = devices.devices()[0]
    assert cpu.total <= psutil.virtual_memory().total
    assert 0 < cpu.available <= cpu.total
    assert 1 <= devices.usable_cores() <= psutil.cpu_count()
