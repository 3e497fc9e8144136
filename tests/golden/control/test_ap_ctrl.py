"""The handshake ``ap_ctrl_chain``, pinned to what XRT does with it."""

import pytest

from lutra_golden.control.ap_ctrl import (
    AP_CONTINUE,
    AP_DONE,
    AP_IDLE,
    AP_READY,
    AP_START,
    CTRL_BITS,
    IRQ_DONE,
    IRQ_READY,
    WINDOW,
    XRT_REGISTERS,
    ApCtrl,
)
from lutra_golden.control.descriptor import QUEUE_DEPTH

CTRL, GIE, IER, ISR, DESCRIPTOR = (each.address for each in XRT_REGISTERS.values())


def _started(address: int) -> ApCtrl:
    front = ApCtrl()
    _start(front, address)
    return front


def _start(front: ApCtrl, address: int) -> None:
    assert front.write(DESCRIPTOR, address & 0xFFFF_FFFF)
    assert front.write(DESCRIPTOR + 4, address >> 32)
    assert front.write(CTRL, AP_START)


def _over(front: ApCtrl, pending: int) -> None:
    front.ask()
    front.answer(pending)


def test_the_map_is_that_of_hls() -> None:
    """Addresses, and bits of CTRL, as UG1399 and UG1393 have them."""
    assert [CTRL, GIE, IER, ISR, DESCRIPTOR] == [0, 4, 8, 12, 16]
    assert [bit for bit, _, _ in CTRL_BITS.values()] == list(range(5))
    assert list(CTRL_BITS) == ["ap_start", "ap_done", "ap_idle", "ap_ready", "ap_continue"]
    assert [AP_START, AP_DONE, AP_IDLE, AP_READY, AP_CONTINUE] == [1 << i for i in range(5)]


def test_a_descriptor_from_start_to_continue() -> None:
    front = ApCtrl()
    assert front.read(CTRL) == AP_IDLE
    _start(front, 0x12_3456_7800)
    assert front.read(CTRL) == AP_START
    assert front.doorbell == 0x1234_5678
    front.rung()
    assert front.doorbell is None
    assert front.read(CTRL) == AP_READY
    assert front.read(CTRL) == 0, "reading clears ready"
    _over(front, 1)
    assert front.read(CTRL) == 0
    _over(front, 0)
    assert front.read(CTRL) == AP_DONE | AP_IDLE
    assert front.read(CTRL) == AP_DONE | AP_IDLE, "done waits for continue"
    front.write(CTRL, AP_CONTINUE)
    assert front.read(CTRL) == AP_IDLE
    front.write(CTRL, AP_CONTINUE)
    assert front.read(CTRL) == AP_IDLE, "nothing to acknowledge"


def test_a_start_is_ignored_while_one_waits_and_keeps_its_argument() -> None:
    front = _started(0x100)
    _start(front, 0x200)
    assert front.doorbell == 1
    front.rung()
    assert front.doorbell is None
    _start(front, 0x200)
    assert front.doorbell == 2


def test_a_start_waits_for_room() -> None:
    front = ApCtrl()
    for index in range(QUEUE_DEPTH):
        _start(front, 0x100 * index)
        assert front.doorbell == index
        front.rung()
    _start(front, 0x4000)
    assert front.doorbell is None and front.read(CTRL) == AP_START | AP_READY
    _over(front, QUEUE_DEPTH - 2)
    assert front.doorbell is None, "not acknowledged"
    front.write(CTRL, AP_CONTINUE)
    assert front.doorbell == 0x40
    front.rung()
    assert front.read(CTRL) == AP_DONE | AP_READY
    front.write(CTRL, AP_CONTINUE)
    assert front.read(CTRL) == 0


def test_one_acknowledgement_is_one_descriptor() -> None:
    front = ApCtrl()
    for index in range(3):
        _start(front, 0x100 * index)
        front.rung()
    _over(front, 0)
    for _ in range(3):
        assert front.control & AP_DONE
        front.write(CTRL, AP_CONTINUE)
    assert not front.control & AP_DONE


def test_what_was_asked_before_a_doorbell_does_not_count() -> None:
    front = _started(0x100)
    front.rung()
    front.ask()
    _start(front, 0x200)
    front.rung()
    front.answer(1)
    assert front.outstanding == 2, "the read may have missed the second"
    _over(front, 1)
    assert (front.outstanding, front.finished) == (1, 1)


def test_descriptors_of_others_hide_ends_but_make_none() -> None:
    front = _started(0x100)
    front.rung()
    _over(front, 3)
    assert (front.outstanding, front.finished) == (1, 0)


@pytest.mark.parametrize("address", [0x101, 0x180, 1 << 40, 1 << 63 | 0x100])
def test_an_address_that_cannot_be_rung(address: int) -> None:
    front = _started(address)
    assert front.doorbell is None and front.refuses
    front.refuse()
    assert not front.refuses
    assert front.read(CTRL) == AP_DONE | AP_IDLE | AP_READY
    front.write(CTRL, AP_CONTINUE)
    assert front.read(CTRL) == AP_IDLE


def test_a_refusal_waits_for_those_before_it() -> None:
    """XRT takes the first done for the first start."""
    front = _started(0x100)
    front.rung()
    _start(front, 0x101)
    assert not front.refuses
    _over(front, 0)
    assert front.refuses
    front.refuse()
    assert front.finished == 2


def test_interrupts() -> None:
    front = ApCtrl()
    front.write(IER, IRQ_DONE | IRQ_READY)
    _start(front, 0x100)
    front.rung()
    assert front.read(ISR) == IRQ_READY and not front.interrupt
    front.write(GIE, 1)
    assert front.interrupt
    front.write(ISR, IRQ_READY)
    assert front.read(ISR) == 0 and not front.interrupt
    front.write(ISR, IRQ_READY)
    assert front.read(ISR) == IRQ_READY, "a one toggles"
    front.write(ISR, IRQ_READY)
    front.write(IER, IRQ_DONE)
    _start(front, 0x200)
    front.rung()
    assert front.read(ISR) == 0
    _over(front, 0)
    assert front.read(ISR) == IRQ_DONE
    front.write(ISR, IRQ_DONE)
    assert not front.interrupt
    front.write(CTRL, AP_CONTINUE)
    assert front.interrupt, "done rises anew for the second"
    front.write(ISR, IRQ_DONE)
    front.write(CTRL, AP_CONTINUE)
    assert not front.interrupt


def test_a_second_end_before_the_first_is_acknowledged_raises_nothing() -> None:
    front = _started(0x100)
    front.rung()
    _start(front, 0x200)
    front.rung()
    front.write(IER, IRQ_DONE)
    _over(front, 1)
    front.write(ISR, IRQ_DONE)
    _over(front, 0)
    assert front.read(ISR) == 0


def test_strobes() -> None:
    front = ApCtrl()
    front.write(DESCRIPTOR, 0x1122_3344, 0b0101)
    front.write(DESCRIPTOR + 4, 0x5566_7788, 0b1010)
    assert (front.read(DESCRIPTOR), front.read(DESCRIPTOR + 4)) == (0x22_0044, 0x5500_7700)
    for address in (CTRL, GIE, IER, ISR):
        front.write(address, 0xFFFF_FFFF, 0b1110)
    assert (front.start, front.gie, front.ier, front.isr) == (False, False, 0, 0)


def test_nothing_else_is_there() -> None:
    front = ApCtrl()
    for address in (0x18, 0x20, WINDOW - 4):
        assert front.read(address) is None
        assert not front.write(address, 1)
