"""The rule of streams on every output of a block."""

from amaranth import Module

from lutra_sim.formal.property import Property

__all__ = ["StreamRules"]


class StreamRules(Property):
    """Once valid, an output stays valid and its payload the same until it is taken."""

    def rules(self, m: Module) -> None:
        if hasattr(self.dut, "clear") and hasattr(self.dut, "cmd"):
            # what drops everything drops what waits, too
            self.assume(m, ~self.dut.clear)
        for channel in self.channels.values():
            if channel.offered:
                self.claim(m, f"{channel.name} waits unchanged", self.kept(m, channel))
