"""Faults in the way to other boards: the tops, what boards are, and the agents that lend them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["GOLDEN", "HOST", "HW"]

_AGENT = "host/devices/test_agent.py"
_BOARD = "host/devices/test_board.py"
_LOCK = "host/devices/test_pynq.py"

HW = [
    *planted(
        "hw/lutra_hw/core/board.py",
        ["hw/core/test_xrt.py::test_ports_are_those_of_a_kernel"],
        (
            "registers of the accelerator alone",
            "Axi4LiteSignature(control_width)",
            "Axi4LiteSignature()",
        ),
        (
            "pins of a bus named as Amaranth does",
            'members[f"{REGISTER_PORT}_{name}"] = member',
            'members[f"{REGISTER_PORT}__{name}"] = member',
        ),
    ),
    *planted(
        "hw/lutra_hw/core/board.py",
        [
            "hw/core/test_board.py::test_what_the_reset_of_a_board_reaches",
            "hw/core/test_board.py::test_addresses_are_not_cut",
        ],
        ("a reset that is active when high", "sync.rst.eq(~self", "sync.rst.eq(self"),
        (
            "what the memory owes outlives a board's reset",
            "accelerator.bus_rst.eq(ResetSignal())",
            "accelerator.bus_rst.eq(0)",
        ),
        (
            "addresses that memory ports cut",
            "if address_width < ADDRESS_WIDTH:",
            "if address_width < 1:",
        ),
    ),
    *planted(
        "hw/lutra_hw/widths.py",
        ["hw/test_widths.py::test_values_stay_the_same"],
        (
            "operands extended without their sign",
            'bits[-1] if is_signed and bits else "0"',
            '"0"',
        ),
        (
            "an arithmetic shift fills with zeros",
            'keeps_sign = kind == "$sshr"',
            "keeps_sign = False",
        ),
        (
            "signed operands compared as unsigned",
            "signs, result, kind in _ORDER)",
            "signs, result, False)",
        ),
    ),
]
"""Faults of the package ``hw``."""

GOLDEN = planted(
    "sim/lutra_golden/core/boards.py",
    [
        "golden/core/test_boards.py::test_a_board_that_does_not_fit_together_is_refused",
        "golden/core/test_boards.py::test_a_kr260_is_the_same_part",
    ],
    (
        "a Zynq-7000 needs no addresses",
        "self.flow in (Flow.ZYNQ_MPSOC, Flow.ZYNQ_7000)",
        "self.flow in (Flow.ZYNQ_MPSOC,)",
    ),
    (
        "ports of the processor that nothing is connected to",
        "if is_zynq and len(self.memory_ports) != len(",
        "if is_zynq and len(self.memory_ports) < len(",
    ),
    (
        "a Zynq without memory",
        "self.intc_base is None or not self.memory)",
        "self.intc_base is None)",
    ),
    (
        "a kernel of two ports",
        "if self.flow == Flow.VITIS and len(self.config.ports) != 1:",
        "if self.flow == Flow.VITIS and len(self.config.ports) < 1:",
    ),
    (
        "settings of another board",
        'title="Kria KR260", board_part="*:kr260_som:*")',
        'title="Kria KR260")',
    ),
)
"""Faults of the package ``golden``."""

HOST = [
    *planted(
        "host/lutra/devices/accelerator/buffers.py",
        ["host/devices/test_buffers.py"],
        (
            "bytes that end outside",
            "if offset + n_bytes <= buffer.n_bytes:",
            "if offset < buffer.n_bytes:",
        ),
        (
            "the first byte of a buffer is the one's before it",
            "at = bisect_right(self._bases, address) - 1",
            "at = bisect_right(self._bases, address - 1) - 1",
        ),
        (
            "the base of a buffer that is gone stays",
            "        del self._bases[at]\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/emulated/agent.py",
        [_BOARD],
        (
            "doorbells rung with what the register has",
            "self.transport.ring(value * DOORBELL_BYTES)",
            "self.transport.ring(value)",
        ),
        (
            "high words of registers read as the low ones",
            "return self.transport.read_register(name, index) | busy",
            "return self.transport.read_register(name) | busy",
        ),
        (
            "a queue that is always empty",
            "return len(doorbells)",
            "return 0",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/lock.py",
        [
            f"{_LOCK}::test_a_lock_is_one_processs_at_a_time",
            f"{_LOCK}::test_a_lock_that_is_no_file",
        ],
        ("two processes at a time", "fcntl.LOCK_EX", "fcntl.LOCK_SH"),
        ("one lock for all boards", 'f"lutra-{safe}.lock"', '"lutra.lock"'),
        (
            "a lock is never given back",
            "        if file is not None:\n            os.close(file)",
            "        pass",
        ),
        ("the parent of the process that has it is named", "os.getpid()", "os.getppid()"),
        (
            "the end of a longer number is left",
            "            os.ftruncate(file, 0)\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/board.py",
        [
            f"{_BOARD}::test_a_token_is_one_message",
            f"{_BOARD}::test_what_was_written_before_a_link_dropped_is_not_lost",
            f"{_BOARD}::test_doorbells_of_a_link_that_dropped_do_not_ring",
            f"{_BOARD}::test_what_was_read_ahead_and_written_since",
            f"{_BOARD}::test_a_second_host_waits_for_one_that_goes",
        ],
        ("a host that goes is not waited for", "if waited >= _FREE_S:", "if waited:"),
        (
            "a wait ends before its descriptor",
            "0xFFFFFFFF, self._rung - 1",
            "0xFFFFFFFF, self._rung",
        ),
        (
            "the first part that was read for all",
            "            at += each[1]\n",
            "",
        ),
        (
            "what was read ahead outlives a write",
            'unless these become many bytes."""\n        self._fetched.clear()\n',
            'unless these become many bytes."""\n',
        ),
        (
            "what was written is lost with the link",
            "[each for each in self._posted if each[1]]",
            "[]",
        ),
        (
            "doorbells ring again with the next link",
            "[each for each in self._posted if each[1]]",
            "list(self._posted)",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/board_link.py",
        [
            f"{_BOARD}::test_by_ssh",
            f"{_BOARD}::test_ssh_that_fails",
            f"{_AGENT}::test_keys_of_the_two_ends",
            f"{_AGENT}::test_an_agent_of_another_version",
        ],
        (
            "an agent of SSH outlives its link",
            "return self.user is None or self.port is not None",
            "return True",
        ),
        (
            "the first line that SSH had to say",
            "for line in reversed(lines)",
            "for line in lines",
        ),
        (
            "an agent without the key is trusted",
            'if lock != "key" and key is not None:',
            "if False:",
        ),
        ("any version will do", "if version != str(greeting.protocol):", "if not version:"),
    ),
    *planted(
        "host/lutra/devices/accelerator/agent.py",
        [
            f"{_AGENT}::test_a_message_that_was_sent_before",
            f"{_AGENT}::test_what_is_not_its_own",
            f"{_AGENT}::test_zeros_of_several_pieces",
            f"{_AGENT}::test_a_host_that_goes_is_aborted",
            f"{_AGENT}::test_memory_and_registers",
            f"{_AGENT}::test_a_fabric_that_an_agent_uses_is_not_loaded_again",
            f"{_BOARD}::test_a_host_that_closed_has_given_the_board_back",
        ],
        (
            "a host hears that it has gone before the next one may come",
            "                return answer\n",
            '                stream.send(frames.pack(answer), 1.0)\n                return b""\n',
        ),
        (
            "the fabric is loaded while another agent uses it",
            "fcntl.LOCK_SH if bitstream is None else fcntl.LOCK_EX",
            "fcntl.LOCK_SH",
        ),
        ("a message is taken twice", "if number != self._n_received:", "if False:"),
        (
            "memory behind a region",
            "address + n_bytes <= base + size:",
            "address <= base + size:",
        ),
        (
            "the first piece is zeroed for all",
            "self._accelerator.write(address + first, bytes(",
            "self._accelerator.write(address, bytes(",
        ),
        (
            "the run of a host that went goes on",
            "        finally:\n            self.abort()\n            self._holder = None",
            "        finally:\n            self._holder = None",
        ),
        (
            "what the processor's cache holds is read",
            "        self._sync(self._for_cpu, first, n_bytes)\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/power.py",
        ["host/devices/test_power.py"],
        ("microwatts taken for milliwatts", "_MICRO = 1e-6", "_MICRO = 1e-3"),
        ("one sensor of a name for all", "name if name not in found else", "name if True else"),
        (
            "the last reading for all",
            "self._watts[name].append(watts)",
            "self._watts[name] = [watts]",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/hwh.py",
        [
            "host/devices/test_hwh.py::test_registers_are_those_of_the_register_map",
            "host/devices/test_hwh.py::test_each_memory_port_has_one_of_the_processors",
        ],
        (
            "memory ports that share one of the processor",
            'f"S_AXI_HP{i}_FPD", "MEMORY"',
            '"S_AXI_HP0_FPD", "MEMORY"',
        ),
        ("registers counted in words", "hex(word.address)", "hex(word.address // 4)"),
        ("all registers can be read", '("ACCESS", word.access)', '("ACCESS", "read-write")'),
    ),
    *planted(
        "host/lutra/devices/emulated/board.py",
        ["host/devices/test_emulated_board.py"],
        (
            "memory is lost with another bitstream",
            "self._simulator.write(address, before.peek(address, n_bytes))",
            "before.peek(address, n_bytes)",
        ),
        (
            "a reset enables interrupts",
            '        simulator.write_register("IRQ_ENABLE", 0)\n',
            "",
        ),
        (
            "buffers are never given back",
            "self._heap.free(address - self.board.buffer_base)",
            "self._heap.free(address)",
        ),
        (
            "the interrupt that a write raises comes later",
            "        self.level = self.simulator.run(1)\n",
            "",
        ),
        (
            "a reset comes late",
            "faults.reset_after -= n_cycles",
            "faults.reset_after -= 1",
        ),
    ),
]
"""Faults of the package ``host``."""
