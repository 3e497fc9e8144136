"""The garbage collector pauses inside the block alone."""

import gc

import pytest

from lutra_sim.rtl.collector import paused_collector


def test_the_collector_goes_on_after_the_block() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), paused_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
