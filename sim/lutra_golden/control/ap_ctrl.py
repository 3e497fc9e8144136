"""Start of descriptors by XRT: its control registers, and what they do (``ap_ctrl_chain``)."""

from collections.abc import Mapping

from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.control.registers import Register
from lutra_golden.core.ports import ADDRESS_WIDTH

__all__ = [
    "AP_CONTINUE",
    "AP_DONE",
    "AP_IDLE",
    "AP_READY",
    "AP_START",
    "CTRL_BITS",
    "IRQ_DONE",
    "IRQ_READY",
    "KERNEL",
    "WINDOW",
    "XRT_ADDR_WIDTH",
    "XRT_REGISTERS",
    "ApCtrl",
]

AP_START, AP_DONE, AP_IDLE, AP_READY, AP_CONTINUE = 1, 2, 4, 8, 16
IRQ_DONE, IRQ_READY = 1, 2
KERNEL = "lutra"
"""Name of the kernel, and of the top module that is one."""
WINDOW = 0x1000
"""Address from which on the accelerator's own registers are seen."""
XRT_ADDR_WIDTH = WINDOW.bit_length()

CTRL_BITS: Mapping[str, tuple[int, str, str]] = {
    "ap_start": (0, "rw", "writing a one starts the descriptor; set until its doorbell is rung"),
    "ap_done": (1, "ro", "a descriptor is over and not acknowledged"),
    "ap_idle": (2, "ro", "no descriptor runs or waits"),
    "ap_ready": (3, "ro", "a descriptor was taken since `CTRL` was last read"),
    "ap_continue": (4, "wo", "writing a one acknowledges one descriptor that is over"),
}
"""Bit, access and meaning of each part of CTRL."""

XRT_REGISTERS: Mapping[str, Register] = {
    "CTRL": Register(0x00, "rw", "see below", width=5),
    "GIE": Register(0x04, "rw", "bit 0: raise the interrupt while a bit of `ISR` is set", width=1),
    "IER": Register(0x08, "rw", "bits of `ISR` that are set by their events", width=2),
    "ISR": Register(
        0x0C, "w1t", "bit 0: ap_done has risen for a descriptor; bit 1: ap_ready has risen", width=2
    ),
    "DESCRIPTOR": Register(
        0x10, "rw", "first argument: address of the descriptor, low word first", 2, 64
    ),
}
"""Registers below :data:`WINDOW`; w1t: writing a one toggles the bit."""


class ApCtrl:
    """Handshake between the host, by reads and writes, and the accelerator's DOORBELL and PENDING.

    The accelerator's side is :attr:`doorbell`, then :meth:`rung` when its write was answered;
    :meth:`ask` when a read of PENDING leaves, then :meth:`answer`; and :meth:`refuse`, as soon as
    :attr:`refuses`. When they happen is not part of the model.
    """

    def __init__(self) -> None:
        self.start = self.ready = self.gie = False
        self.outstanding = 0
        """Descriptors that were rung and are not known to be over."""
        self.finished = 0
        """Those that are over and not acknowledged."""
        self.ier = self.isr = self.argument = 0
        self._stale = False

    @property
    def control(self) -> int:
        """CTRL as it is read."""
        bits = {
            AP_START: self.start,
            AP_DONE: self.finished > 0,
            AP_IDLE: not (self.start or self.outstanding),
            AP_READY: self.ready,
        }
        return sum(bit for bit, is_set in bits.items() if is_set)

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt."""
        return self.gie and self.isr != 0

    @property
    def doorbell(self) -> int | None:
        """Value to be written to DOORBELL; None while there is none."""
        is_next = self.start and self._fits and self._has_room
        return self.argument // DOORBELL_BYTES if is_next else None

    @property
    def refuses(self) -> bool:
        """A start is to be refused: its address cannot be rung, and it is its turn to be done."""
        return self.start and not self._fits and self._has_room and not self.outstanding

    def read(self, address: int) -> int | None:
        """Read a register; None if there is none."""
        if address not in _WORDS:
            return None
        name, word = _WORDS[address]
        values = {
            "CTRL": self.control,
            "GIE": int(self.gie),
            "IER": self.ier,
            "ISR": self.isr,
            "DESCRIPTOR": self.argument >> 32 * word & 0xFFFF_FFFF,
        }
        if name == "CTRL":
            self.ready = False
        return values[name]

    def write(self, address: int, value: int, strobes: int = 0b1111) -> bool:
        """Write the bytes of ``strobes`` to a register; False if there is none."""
        if address not in _WORDS:
            return False
        name, word = _WORDS[address]
        if name == "DESCRIPTOR":
            # an argument stays while its start waits
            for lane in () if self.start else range(4):
                if strobes >> lane & 1:
                    bits = 0xFF << 32 * word + 8 * lane
                    self.argument = self.argument & ~bits | value << 32 * word & bits
        elif strobes & 1:
            if name == "CTRL":
                self._control(value)
            elif name == "GIE":
                self.gie = bool(value & 1)
            elif name == "IER":
                self.ier = value & 3
            else:
                self.isr ^= value & 3
        return True

    def rung(self) -> None:
        """Count a doorbell that was answered: the start was taken."""
        self.outstanding += 1
        # what is read meanwhile may not count it
        self._stale = True
        self._take()

    def refuse(self) -> None:
        """Refuse the start: ready and done, and nothing is rung."""
        self._finish(1)
        self._take()

    def ask(self) -> None:
        """Begin to read PENDING."""
        self._stale = False

    def answer(self, pending: int) -> None:
        """End of a read of PENDING: descriptors that it does not count any more are over."""
        n_over = max(self.outstanding - pending, 0)
        if n_over and not self._stale:
            self.outstanding -= n_over
            self._finish(n_over)

    @property
    def _has_room(self) -> bool:
        return self.outstanding + self.finished < QUEUE_DEPTH

    @property
    def _fits(self) -> bool:
        return self.argument % DOORBELL_BYTES == 0 and self.argument < 1 << ADDRESS_WIDTH

    def _control(self, value: int) -> None:
        if value & AP_CONTINUE and self.finished:
            self.finished -= 1
            # done rises anew for the next
            if self.finished:
                self._event(IRQ_DONE)
        if value & AP_START:
            self.start = True

    def _take(self) -> None:
        self.start, self.ready = False, True
        self._event(IRQ_READY)

    def _finish(self, count: int) -> None:
        if not self.finished:
            self._event(IRQ_DONE)
        self.finished += count

    def _event(self, bit: int) -> None:
        self.isr |= bit & self.ier


_WORDS = {
    register.address + 4 * word: (name, word)
    for name, register in XRT_REGISTERS.items()
    for word in range(register.count)
}
