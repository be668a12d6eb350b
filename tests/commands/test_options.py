"""What commands share: how they import, and what their options leave behind."""

from __future__ import annotations

import gc

import pytest

from jambacli.commands.options import importing


@pytest.mark.parametrize("on", [True, False])
def test_importing_pauses_the_collector_and_leaves_it_as_it_was(on: bool) -> None:
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is on
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
