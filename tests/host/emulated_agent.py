"""The agent over a tree of files, with the side effects of registers; for any Python from 3.8 on.

The first argument is the agent's file, the others are the agent's.
"""

import importlib.util
import json
import sys

spec = importlib.util.spec_from_file_location("lutra_agent", sys.argv[1])
assert spec is not None and spec.loader is not None
lutra_agent = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = lutra_agent
spec.loader.exec_module(lutra_agent)

CONTROL, STATUS, IRQ_STATUS, DOORBELL, PENDING = 0x010, 0x014, 0x01C, 0x030, 0x034
RUNG, DONE, MAILBOX = 0x800, 0x804, 0x840


class EmulatedAccelerator(lutra_agent.BoardAccelerator):
    """Registers in a file that is mapped by the accelerator, too."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        masks = json.loads((self._root / "masks.json").read_text())
        self._masks = {int(offset): mask for offset, mask in masks.items()}

    def read_register(self, offset: int) -> int:
        read = super().read_register
        if offset == PENDING:
            return (read(RUNG) - read(DONE)) & 7
        if offset == STATUS:
            return int(read(RUNG) != read(DONE))
        return read(offset)

    def write_register(self, offset: int, value: int) -> None:
        read, write = super().read_register, super().write_register
        if offset == IRQ_STATUS:
            write(offset, read(offset) & ~value)
        elif offset == DOORBELL:
            write(MAILBOX + 4 * (read(RUNG) % 8), value)
            write(RUNG, read(RUNG) + 1)
        elif offset != CONTROL:
            write(offset, value & self._masks[offset])


sys.exit(lutra_agent.main(sys.argv[2:], EmulatedAccelerator))
