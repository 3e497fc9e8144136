"""Faults in devices that are lent: the tests of links, and of plans over them, must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_REMOTE = ["host/devices/test_remote.py"]
_MACHINES = ["host/serving/plans/test_machines.py"]

MUTANTS = [
    *planted(
        "host/lutra/devices/remote/wire.py",
        _REMOTE,
        (
            "numbers that are too large for the way",
            "if limits.min <= low and high <= limits.max:",
            "if limits.min <= low:",
        ),
        ("arrays begin where the first one does", "at += data.nbytes", "at += 0"),
        ("bytes behind a message's arrays", "if at != len(body):", "if at > len(body):"),
    ),
    *planted(
        "host/lutra/devices/remote/shape.py",
        [*_REMOTE, *_MACHINES],
        (
            "messages without latency",
            "        time.sleep(self._link.latency_s)\n        rest =",
            "        rest =",
        ),
        (
            "answers take no time on a shaped link",
            'self._link.carry("in", len(self._buffer) - before)',
            "pass",
        ),
        (
            "a link that is never lost",
            "number, self.events = self.events, self.events + 1",
            "number = self.events",
        ),
    ),
    *planted(
        "host/lutra/devices/remote/link.py",
        _REMOTE,
        (
            "faults of a lent device are refusals",
            'raise DeviceError(f"{self._address}: {error}")',
            "raise LutraError(error)",
        ),
        (
            "no room on a lent device is for good",
            "raise NoRoom(error) if kind == NO_ROOM else LutraError(error)",
            "raise LutraError(error)",
        ),
        (
            "a lost link is tried again",
            "                self.lost = reason",
            "                pass",
        ),
        (
            "sessions that nobody has stay on a lent device",
            "drop = [self.dropped.popleft() for _ in range(len(self.dropped))]",
            "drop = list[int]()",
        ),
    ),
    *planted(
        "host/lutra/devices/remote/lender.py",
        _REMOTE,
        (
            "the model of another host is thrown out",
            "if others and self._loaded is not None:",
            "if False:",
        ),
        (
            "steps through some layers go through all",
            'layers=range(first, stop) if given["layers"] else None,',
            "layers=None,",
        ),
        (
            "memory of a lent device is not reserved",
            'self._of(host, fields["session"]).reserve(fields["n"], fields["spare"])',
            'self._of(host, fields["session"])',
        ),
        (
            "copies on a lent device are whole",
            '.fork(message[0]["n"])',
            ".fork(None)",
        ),
    ),
    *planted(
        "host/lutra/devices/remote/device.py",
        _REMOTE,
        (
            "positions on a lent device stand still",
            '            session.advance(word["length"])\n',
            "",
        ),
        (
            "logits that nobody wants cross the link",
            '"logits_from": step.logits_from,',
            '"logits_from": 0,',
        ),
        (
            "a session goes on with another model on a lent device",
            "if self.links is not self.device.links:",
            "if False:",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/device.py",
        _MACHINES,
        (
            "a device that is back has what it lost",
            "        session.parts.pop(site, None)\n                self._live.back(",
            "        pass\n                self._live.back(",
        ),
        ("a device that is back has no work", "                self._live.back(site)\n", ""),
    ),
]
