"""Known prefixes: which one is taken, what is kept, and the bound on their memory."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from tests.host.interrupt import Interrupt

from lutra.devices.golden import GoldenDevice
from lutra.serving.prefixes import LEAST_PREFIX, KnownPrefixes
from lutra.serving.sequence import TokenSequence
from lutra_golden.model.cache import SequenceKv


class Fake:
    """A session that only knows whether it was closed."""

    length, closed = 0, False

    def export(self, layers: range | None = None) -> SequenceKv:
        raise NotImplementedError

    def restore(self, kv: SequenceKv) -> None:
        raise NotImplementedError

    def reserve(self, n: int, spare: int = 0) -> None:
        raise NotImplementedError

    def truncate(self, n: int) -> None:
        raise NotImplementedError

    def fork(self, n: int | None = None) -> "Fake":
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def sequence(tokens: Sequence[int]) -> tuple[TokenSequence, Fake]:
    session = Fake()
    return TokenSequence(GoldenDevice(), session, tokens=list(tokens)), session


def kept(known: KnownPrefixes, *tokens: Sequence[int]) -> list[tuple[TokenSequence, Fake]]:
    made = [sequence(each) for each in tokens]
    for each, _ in made:
        known.put(each)
    return made


def test_the_longest_common_beginning_is_taken() -> None:
    known = KnownPrefixes(1000, 1)
    base = list(range(20))
    short, long, _ = kept(known, [*base[:10], 99], [*base, 7, 7], [1, *base])
    assert known.pop([*base, 9]) == (long[0], 20)
    assert len(known) == 2
    assert known.pop([*base, 9]) == (short[0], 10)
    assert known.pop([*base, 9]) is None
    assert not any(session.closed for _, session in (short, long))


def test_the_last_token_is_always_computed() -> None:
    known = KnownPrefixes(1000, 1)
    base = list(range(20))
    [(only, _)] = kept(known, base)
    assert known.pop(base) == (only, 19)
    kept(known, base)
    assert known.pop(base[:LEAST_PREFIX]) is None
    found = known.pop(base[: LEAST_PREFIX + 1])
    assert found is not None and found[1] == LEAST_PREFIX


def test_what_would_be_found_stays() -> None:
    known = KnownPrefixes(1000, 1)
    base = list(range(20))
    assert known.longest(base) == 0
    kept(known, [*base[:10], 99], [*base, 7, 7])
    assert known.longest([*base, 9]) == 20
    assert known.longest(base) == 19
    assert known.longest(base[:LEAST_PREFIX]) == 0
    assert len(known) == 2


def test_of_equals_the_one_that_loses_least_and_was_used_last() -> None:
    known = KnownPrefixes(1000, 1)
    base = list(range(20))
    _, second, third, _ = kept(known, [*base, 3, 4], [*base, 5], [*base, 6], [*base, 7, 8, 9])
    assert known.pop([*base, 1, 1]) == (third[0], 20)
    assert known.pop([*base, 1, 1]) == (second[0], 20)


def test_what_was_used_longest_ago_gives_way() -> None:
    known = KnownPrefixes(2 * 40, 2)
    made = kept(known, range(10), range(100, 120), range(200, 210))
    assert known.n_bytes == 80
    kept(known, range(300, 301))
    assert [session.closed for _, session in made] == [True, False, False]
    found = known.pop(range(100, 130))  # used again
    assert found is not None
    known.put(found[0])
    kept(known, range(400, 410))
    assert [session.closed for _, session in made] == [True, False, True]
    _, huge = sequence(range(41))
    [(_, huge)] = kept(known, range(41))
    assert huge.closed and len(known) == 0


def test_the_oldest_is_dropped_when_asked_for() -> None:
    known = KnownPrefixes(1000, 1)
    first, second = kept(known, range(10), range(10, 20))
    assert known.drop_oldest() and first[1].closed and not second[1].closed
    assert known.drop_oldest() and second[1].closed
    assert not known.drop_oldest()


def test_what_says_nothing_beyond_another_is_not_kept() -> None:
    """Requests for one prompt, each of which leaves a sequence, take the memory of one."""
    known = KnownPrefixes(1000, 1)
    other, short, long = kept(known, range(50, 60), range(10), range(20))
    assert [session.closed for _, session in (other, short, long)] == [False, True, False]
    again = kept(known, range(20), range(15), range(20))
    assert all(session.closed for _, session in again)
    assert len(known) == 2 and known.n_bytes == 30
    # it counts as a use
    assert known.drop_oldest() and other[1].closed and not long[1].closed
    different = kept(known, [*range(14), 7], [99, *range(1, 10)], [])
    assert [session.closed for _, session in different] == [False, False, True]
    assert len(known) == 3


def test_memory_is_taken_page_by_page() -> None:
    known = KnownPrefixes(2 * 63, 2, page=16)
    first, _, _ = kept(known, range(16), range(100, 117), range(200, 201))
    assert first[1].closed and known.n_bytes == 2 * 48


def test_nothing_is_kept_after_closing() -> None:
    known = KnownPrefixes(1000, 1)
    before = kept(known, range(10))
    known.close()
    after = kept(known, range(10))
    assert before[0][1].closed and after[0][1].closed
    assert known.pop(range(12)) is None


def test_a_bound_of_nothing_keeps_nothing() -> None:
    known = KnownPrefixes(0, 1)
    [(_, session)] = kept(known, range(10))
    assert session.closed


def test_a_sequence_may_end_while_another_call_is_on_its_way() -> None:
    """Happens when the garbage collector closes a stream, which it may do at any line."""
    known = KnownPrefixes(20, 1)
    inner, inner_session = sequence(range(30, 45))

    class Closing(Fake):
        def close(self) -> None:
            super().close()
            known.put(inner)

    outer = Closing()
    known.put(TokenSequence(GoldenDevice(), outer, tokens=list(range(15))))
    kept(known, range(50, 60))
    assert outer.closed and not inner_session.closed
    assert known.pop(range(30, 50)) == (inner, 15)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_prompts_shorter_than_the_least(n: int) -> None:
    known = KnownPrefixes(1000, 1)
    kept(known, range(10))
    assert known.pop(range(n)) is None


def test_an_interrupt_in_any_line_leaves_the_lock_free() -> None:
    trace = Interrupt("prefixes.py", 0)
    for n in range(1, 200):
        known, trace = KnownPrefixes(20, 1), Interrupt("prefixes.py", n)
        with suppress(KeyboardInterrupt), trace:
            kept(known, range(15), range(50, 60))
            known.pop(range(50, 61))
            known.drop_oldest()
        assert not known._lock.locked()  # pyright: ignore[reportPrivateUsage]
    assert trace.left > 0  # every line was interrupted
