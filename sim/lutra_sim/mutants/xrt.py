"""Faults in the way to an Alveo card: the kernel, its driver, and the card that is emulated."""

from lutra_sim.mutants.mutant import planted

__all__ = ["HOST", "HW"]

_TESTS = "host/devices/test_xrt.py"
_KERNEL = "hw/core/test_xrt.py"

HW = [
    *planted(
        "hw/lutra_hw/core/xrt.py",
        [
            f"{_KERNEL}::test_ports_are_those_of_a_kernel",
            f"{_KERNEL}::test_the_interrupt_is_the_fronts",
        ],
        ("addresses of the accelerator's width", "_ADDRESS_WIDTH = 64", "_ADDRESS_WIDTH = 40"),
        ("registers without the front's", "control_width=XRT_ADDR_WIDTH, address", "address"),
        (
            "the interrupt of the accelerator",
            "return front.s_axi, front.interrupt",
            "return front.s_axi, accelerator.irq",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/watchdog.py",
        ["hw/control/test_watchdog.py::test_a_limit_that_comes_during_a_run"],
        (
            "a limit ends the run during which it comes",
            "(left == 0) & armed",
            "(left == 0) & (self.limit != 0)",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/ap_ctrl.py",
        ["hw/control/test_ap_ctrl.py::test_bench"],
        ("strobes of the first byte for all", "here & strb[byte] &", "here & strb[0] &"),
        (
            "a write that is forwarded answers with its own response",
            "Mux(answered, core.bresp,",
            "Mux(answered, RESP_OKAY,",
        ),
    ),
]
"""Faults of the package ``hw``."""

HOST = [
    *planted(
        "host/lutra/devices/accelerator/image.py",
        [
            f"{_TESTS}::test_an_image_that_loses_a_bit",
            f"{_TESTS}::test_a_large_image_is_summed_in_pieces",
        ],
        ("any sum will do", " != checksum(np.frombuffer(piece, np.uint8)):", " == 0:"),
        (
            "the code is not summed",
            '{"PROGRAM_BASE": SegmentKind.CODE, "WEIGHT_BASE"',
            '{"WEIGHT_BASE"',
        ),
        (
            "the first piece is summed for all",
            "address, done = address + len(piece), done + len(piece)",
            "done += len(piece)",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/xrt.py",
        [
            f"{_TESTS}::test_a_card_that_does_not_do_it",
            f"{_TESTS}::test_a_clock_that_is_not_the_kernels",
        ],
        ("any clock will do", "if 0 < fastest <", "if 0 > fastest <"),
        ("a clock that XRT does not know is refused", "if 0 < fastest <", "if fastest <"),
    ),
    *planted(
        "host/lutra/devices/accelerator/identity.py",
        [
            f"{_TESTS}::test_another_configuration",
            f"{_TESTS}::test_no_accelerator_of_ours",
            f"{_TESTS}::test_memory_that_loses_bits",
        ],
        (
            "any configuration will do",
            "if fingerprint != config.fingerprint:",
            "if not fingerprint:",
        ),
        (
            "the checksum is not looked at",
            "!= checksum(np.frombuffer(data, np.uint8)):",
            "== 0:",
        ),
        (
            "nothing that answers is an accelerator",
            'if not result["status"] & STATUS_DONE or result["ident"] != IDENT:',
            "if False:",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/xrt.py",
        [
            f"{_TESTS}::test_it_computes_what_golden_does",
            f"{_TESTS}::test_calls_of_a_token",
            f"{_TESTS}::test_a_missing_sync_shows",
            f"{_TESTS}::test_a_run_that_is_late",
        ],
        (
            "what is written goes to the front of the buffer",
            "self.bo.sync(self._to_card, len(data), offset)",
            "self.bo.sync(self._to_card, len(data), 0)",
        ),
        (
            "the host's copy is read",
            "        self.bo.sync(self._from_card, n_bytes, offset)\n",
            "",
        ),
        (
            "a run is made for every pass",
            "idle = self._idle.setdefault(address, [])",
            "idle = self._idle.setdefault(0, [])",
        ),
        (
            "a reset does not wait for what runs",
            "        while self._under_way:\n            try:",
            "        while False:\n            try:",
        ),
    ),
    *planted(
        "host/lutra/devices/emulated/card.py",
        [
            f"{_TESTS}::test_an_argument_that_does_not_fit_is_not_set",
            f"{_TESTS}::test_a_missing_sync_shows",
            f"{_TESTS}::test_it_computes_what_golden_does",
        ],
        ("numbers of 33 bits", "range(-(1 << 31), 1 << 31)", "range(-(1 << 31), 1 << 32)"),
        (
            "one copy of a buffer",
            "part[:] = self.card.kernel.peek(at, size)",
            "self.card.kernel.peek(at, size)",
        ),
        (
            "buffers are never given back",
            "            self.card.free(self._address)\n",
            "            pass\n",
        ),
    ),
]
"""Faults of the package ``host``."""
