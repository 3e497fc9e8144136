"""Addresses of an accelerator's memory."""

import gc
from collections.abc import Callable
from contextlib import suppress

import pytest
from tests.host.interrupt import Interrupt

from lutra.compile.fit import round_up
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.transport import PAGE, Heap
from lutra.devices.base import DeviceError
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel


class Owner:
    """Frees its memory when it is collected, in a cycle as a session that an exception holds."""

    def __init__(self, heap: Heap) -> None:
        self.heap, self.address = heap, heap.allocate(PAGE)
        self.itself = self

    def __del__(self) -> None:
        self.heap.free(self.address)


def test_the_lowest_gap_that_holds_it() -> None:
    heap = Heap(8 * PAGE)
    at = [heap.allocate(size) for size in (PAGE, 1, 2 * PAGE, PAGE + 1)]
    assert at == [0, PAGE, 2 * PAGE, 4 * PAGE]
    heap.free(at[1])
    assert heap.free_bytes == 3 * PAGE
    assert heap.allocate(2 * PAGE) == 6 * PAGE
    assert heap.allocate(PAGE) == PAGE
    with pytest.raises(
        DeviceError,
        match=r"^the accelerator's memory has no 4,096 bytes in a row: 0 of 32,768 bytes are free$",
    ):
        heap.allocate(1)


def test_an_allocation_is_freed_by_its_ticket_alone() -> None:
    heap = Heap(2 * PAGE, base=PAGE)
    first = heap.allocate(PAGE)
    ticket = heap.ticket(first)
    heap.keep([])
    assert heap.free_bytes == 2 * PAGE
    assert heap.allocate(PAGE) == first
    heap.free(first, ticket)  # of the one before
    assert heap.free_bytes == PAGE
    heap.keep([first])
    heap.free(first, heap.ticket(first))
    assert heap.free_bytes == 2 * PAGE


@pytest.mark.parametrize("file", ["accelerator/device.py", "sessions.py", "transport.py"])
def test_an_interrupt_in_any_line_loses_no_memory(
    file: str, packed: Callable[[str], PackedModel]
) -> None:
    """As a session is opened and closed: as many are opened afterwards as there is room for."""
    model, n = packed("grouped"), 3
    trace = Interrupt(file, 0)
    for line in range(1, 100):
        device = AcceleratorDevice(InterpretedTransport())
        device.load(model)
        needed = round_up(device.program.kv_bytes, PAGE)
        device.memory = Heap(n * needed, device.memory.allocate(1))
        device._free = n * needed
        trace = Interrupt(file, line)
        with suppress(KeyboardInterrupt), trace:
            device.session().close()
        sessions = [device.session() for _ in range(n)]
        assert len({each.address for each in sessions}) == n
        with pytest.raises(LutraError, match=rf"0 free: close one of {n}, "):
            device.session()
        device.close()
        if trace.left > 0:
            break
    assert trace.left > 0  # every line was interrupted


def test_memory_is_freed_while_it_is_allocated() -> None:
    """A collection of garbage comes at any point of an allocation."""
    heap, before = Heap(100 * PAGE), gc.get_threshold()
    held = [heap.allocate(PAGE) for _ in range(40)]
    gc.collect()
    gc.freeze()  # what other tests hold is not gone through each time
    try:
        for n in range(1, 60):
            gc.disable()
            gc.collect()  # also drops the tuples that Python keeps for reuse
            Owner(heap)
            gc.set_threshold(n)
            gc.enable()
            address = heap.allocate(PAGE)
            assert address not in held
            heap.free(address)
    finally:
        gc.enable()
        gc.set_threshold(*before)
        gc.unfreeze()
    gc.collect()
    assert heap.free_bytes == 60 * PAGE


def test_a_hole_is_filled_with_what_fits() -> None:
    heap = Heap(8 * PAGE)
    assert [heap.allocate(n * PAGE) for n in (1, 2, 1)] == [0, PAGE, 3 * PAGE]
    heap.free(PAGE)
    assert heap.free_bytes == 6 * PAGE
    # a byte makes it a page more
    assert heap.allocate(2 * PAGE + 1) == 4 * PAGE
    assert heap.allocate(2 * PAGE) == PAGE
    assert heap.allocate(0) == 7 * PAGE
    assert heap.free_bytes == 0


def test_memory_that_is_full() -> None:
    heap = Heap(2 * PAGE)
    first = heap.allocate(PAGE)
    heap.allocate(1)
    heap.free(first)
    with pytest.raises(DeviceError) as error:
        heap.allocate(PAGE + 1)
    assert str(error.value) == (
        "the accelerator's memory has no 8,192 bytes in a row: 4,096 of 8,192 bytes are free"
    )
    assert heap.allocate(PAGE) == first
