"""Requests on their way through a cluster."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lutra_flows.cluster.trace import Arrival

if TYPE_CHECKING:
    from lutra_flows.cluster.instance import Instance

__all__ = ["Job"]


@dataclass(eq=False)
class Job:
    """A request that has come.

    Parameters
    ----------
    arrival : the request.
    prompt : tokens to compute before the next one can be made: those of its prompt, and after a
        device was lost those that were made, too.
    done : of these, how many are computed.
    made : tokens of the answer.
    first, last : seconds of the first and of the last of them, None before.
    target : device of the answer, if it is another one than that of the prompt.
    sent : transfers under way, or for which the target has no memory yet.
    reserved : bytes of keys and values on each device.
    attempt : how many times the request was begun again.
    exposed_s : seconds for which the answer waited for keys and values.
    worst_gap_s : the longest time between two tokens.
    """

    arrival: Arrival
    prompt: int = 0
    done: int = 0
    made: int = 0
    first: float | None = None
    last: float | None = None
    target: "Instance | None" = None
    sent: int = 0
    reserved: dict["Instance", int] = field(default_factory=dict["Instance", int])
    attempt: int = 0
    exposed_s: float = 0.0
    worst_gap_s: float = 0.0

    def __post_init__(self) -> None:
        self.prompt = self.arrival.prompt

    @property
    def left(self) -> int:
        """Tokens that are still to be computed before the next one can be made."""
        return self.prompt - self.done

    @property
    def position(self) -> int:
        """Position of the token that was made last."""
        return self.arrival.prompt + self.made - 1

    @property
    def is_over(self) -> bool:
        """True if the answer is complete."""
        return self.made == self.arrival.answer

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        assert self.first is not None
        return self.first - self.arrival.at

    @property
    def tpot_s(self) -> float:
        """Mean seconds of each token behind it."""
        assert self.first is not None and self.last is not None
        return (self.last - self.first) / max(self.arrival.answer - 1, 1)

    def token(self, time: float) -> None:
        """Note a token of the answer."""
        if self.last is not None:
            self.worst_gap_s = max(self.worst_gap_s, time - self.last)
        else:
            self.first = time
        self.last = time
        self.made += 1

    def again(self) -> None:
        """Begin again where a device was lost: all tokens so far are computed once more."""
        self.prompt, self.done, self.target, self.sent = self.arrival.prompt + self.made, 0, None, 0
        self.attempt += 1
