"""Random faults while an emulated board makes tokens: ``python -m tests.system.soak --board u55c``.

A small random model tells one story after the other, sampled from its own logits. Every logit of
every token is compared with golden's, and after each fault keys and values, too.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from tests.hw.core.test_accelerator import SMALL
from tests.system.soak_boards import BOARDS, Fault, SoakBoard, When

from lutra.devices.base import DeviceError, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv

__all__ = ["Soak", "Tally", "main"]

_PROMPT_MAX = 7
_TRIES = 3  # of a token, behind a fault


@dataclass
class Tally:
    """Tokens that were made, those among them that were wrong, and those that never came.

    ``faults`` were injected, ``errors`` ended in an error line, by name; ``problems`` say what
    else was not as it must be.
    """

    tokens: int = 0
    wrong: int = 0
    lost: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])

    @property
    def sound(self) -> bool:
        """True if nothing was wrong, and nothing lost."""
        return not (self.wrong or self.lost or self.problems)


class Soak:
    """Stories on ``board``, with a fault before a share ``rate`` of its passes."""

    def __init__(self, board: SoakBoard, rng: Random, rate: float) -> None:
        self._board, self._rng, self._rate = board, rng, rate
        self._golden = GoldenDevice()
        self._golden.load(board.found.model)
        self._reference = self._golden.session()
        self._tokens: list[int] = []
        self.tally = Tally()

    def run(self, n_tokens: int, progress: StepProgress | None = None) -> Tally:
        """Make ``n_tokens``."""
        board, rng, tally = self._board, self._rng, self.tally
        board.load()
        board.count_transfers()
        while tally.tokens < n_tokens:
            self._tokens = []
            board.session.truncate(0)
            self._reference.truncate(0)
            vocabulary = self._golden.model.vocab_size
            tokens = [rng.randrange(vocabulary) for _ in range(rng.randint(1, _PROMPT_MAX))]
            while len(self._tokens) + len(tokens) <= SMALL.max_context:
                if tally.tokens == n_tokens:
                    break
                logits = self._step(tokens)
                tally.tokens += 1
                tokens = [self._sample(logits)]
                if progress is not None:
                    progress("making tokens", tally.tokens / n_tokens)
            self._compare_kv("at the end of a story")
        board.close()
        return tally

    def _sample(self, result: StepResult) -> int:
        logits = result.logits[-1] - result.logits[-1].max()
        weights = np.exp(logits * result.scale[-1])
        return self._rng.choices(range(len(weights)), weights)[0]

    def _step(self, tokens: list[int]) -> StepResult:
        """Run ``tokens`` with or without a fault; golden's result."""
        [expected] = self._golden.run([Step(session=self._reference, tokens=tokens)])
        if self._rng.random() < self._rate:
            name = self._rng.choice(list(self._board.faults))
            self.tally.faults[name] += 1
            found = self._with_fault(name, self._board.faults[name], tokens)
        else:
            found = self._attempt(tokens, "without a fault")
        if found is None:
            self.tally.lost += 1
            self._start_again(self._tokens + tokens)
        elif not (
            np.array_equal(found.logits, expected.logits)
            and np.array_equal(found.scale, expected.scale)
            and np.array_equal(found.argmax, expected.argmax)
        ):
            self.tally.wrong += 1
        self._tokens += tokens
        return expected

    def _with_fault(self, name: str, fault: Fault, tokens: list[int]) -> StepResult | None:
        board = self._board
        if fault.when is When.RUN:
            held = board.session.export().to_bytes()
            with fault.injected():
                try:
                    return board.run(tokens)
                except DeviceError as error:
                    self._ended(name, error)
            if board.session.export().to_bytes() != held:
                self.tally.problems.append(f"{name}: keys or values before it changed")
        elif fault.when is When.KILL:
            with fault.injected():
                board.load()
            self._replay(self._tokens)
        else:
            self._load_again(name, fault)
        return self._attempt(tokens, name)

    def _load_again(self, name: str, fault: Fault) -> None:
        """Load the model anew, once with the fault; the session moves over."""
        board, kv = self._board, self._board.session.export()
        board.close()
        refused = False
        with fault.injected():
            try:
                board.load()
            except LutraError as error:
                refused = True
                self._ended(name, error)
        if refused != (fault.when is When.LOAD):
            self.tally.problems.append(f"{name}: {'refused' if refused else 'not refused'}")
        if refused or fault.when is When.LOAD:
            board.close()
            board.load()
        board.session.restore(SequenceKv.from_bytes(kv.to_bytes()))

    def _attempt(self, tokens: list[int], name: str) -> StepResult | None:
        for _ in range(_TRIES):
            try:
                return self._board.run(tokens)
            except DeviceError as error:
                self.tally.problems.append(f"{name}: {error}")
        return None

    def _start_again(self, tokens: list[int]) -> None:
        """Load the model anew where a token never came, so that the others do."""
        self._board.close()
        self._board.load()
        self._replay(tokens)

    def _replay(self, tokens: list[int]) -> None:
        if tokens:
            self._board.run(tokens)

    def _ended(self, name: str, error: LutraError) -> None:
        self.tally.errors[name] += 1
        if "\n" in str(error) or not str(error):
            self.tally.problems.append(f"{name}: not one line: {str(error)!r}")

    def _compare_kv(self, when: str) -> None:
        found, expected = self._board.session.export(), self._reference.export()
        if found.to_bytes() != expected.to_bytes():
            self.tally.problems.append(f"keys or values differ {when}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make tokens, and print what happened; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.soak", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--board", choices=BOARDS, default="u55c", help="board (%(default)s)")
    parser.add_argument("-n", type=int, default=10_000, help="tokens to make (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all chance (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.05, help="share of passes with a fault (%(default)s)"
    )
    options = parser.parse_args(arguments)
    rng = Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, StepProgress() as progress:
        board = BOARDS[options.board](Path(folder) / "model", rng)
        try:
            tally = Soak(board, rng, options.rate).run(options.n, progress)
        finally:
            board.remove()
    for name, count in tally.faults.most_common():
        print(f"{name}: {count}, of which {tally.errors[name]} ended in an error line")
    for problem in tally.problems:
        print(f"PROBLEM: {problem}")
    print(json.dumps({"board": options.board, "seed": options.seed} | vars(tally)))
    return 0 if tally.sound else 1


if __name__ == "__main__":
    sys.exit(main())
