"""What passes take: between and beyond the sizes that came, and once they are long ago."""

import pytest

from lutra.serving.speculation.costs import PassCosts


def costs(**seconds: float) -> PassCosts:
    """Of passes that came once: ``n4=2.0`` is one of 4 tokens."""
    found = PassCosts()
    for name, value in seconds.items():
        found.took(int(name[1:]), value)
    return found


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"n1": 2.0}, [2.0, 4.0, 6.0, 8.0, 10.0]),
        ({"n1": 2.0, "n2": 2.5}, [2.0, 2.5, 3.0, 3.5, 4.0]),
        ({"n1": 2.0, "n3": 4.0}, [2.0, 3.0, 4.0, 5.0, 6.0]),
        ({"n1": 2.0, "n2": 2.0, "n4": 8.0}, [2.0, 2.0, 5.0, 8.0, 10.0]),
        ({"n1": 2.0, "n4": 1.0}, [2.0, 5 / 3, 4 / 3, 1.0, 1.0]),
    ],
)
def test_sizes_that_did_not_come(known: dict[str, float], expected: list[float]) -> None:
    """Between others on a line; beyond, as each token has taken so far."""
    assert costs(**known).of(1, 4) == pytest.approx(expected)


def test_smaller_passes_say_nothing_of_larger_ones() -> None:
    found = costs(n1=1.0, n4=2.0, n6=4.0)
    assert found.of(4, 4) == pytest.approx([2.0, 3.0, 4.0, 5.0, 6.0])
    assert [found.reach(n) for n in (1, 4, 6)] == [5, 2, 0]


def test_the_mean_of_a_size_follows() -> None:
    """The first one counts no longer if the second takes less; one that was disturbed takes twice
    what is expected."""
    found = costs(n1=7.0)
    expectations = (1.0, 1.0), (2.0, 1.25), (1.25, 1.25), (100.0, 1.5625), (0.0, 1.171875)
    for seconds, expected in expectations:
        found.took(1, seconds)
        assert found.of(1, 0) == [expected]


def test_sizes_are_forgotten() -> None:
    found = costs(n1=1.0, n2=1.5)
    assert (found.age(1), found.age(2)) == (None, None)
    found = costs(n1=1.0, n2=1.5)
    found.took(1, 1.0)
    found.took(2, 1.5)
    assert (found.age(1), found.age(2), found.age(3)) == (1, 0, None)
    found.took(4, 2.0)
    assert found.reach(1) == 3
    for _ in range(64):
        found.took(1, 1.0)
    assert found.reach(1) == 3
    found.took(2, 1.5)  # once in a while, and the single pass of 4 is forgotten
    assert found.reach(1) == 1
    for _ in range(512):
        found.took(1, 1.0)
    assert (found.age(2), found.reach(1)) == (512, 1)
    found.took(1, 1.0)
    assert found.reach(1) == 0
    assert found.of(1, 1) == [1.0, 2.0]


def test_larger_passes_share_something_or_do_not() -> None:
    assert not costs(n1=1.0, n2=2.0, n4=4.0).shares(1)
    assert not costs(n1=1.0, n2=1.95).shares(1)
    assert costs(n1=1.0, n2=2.0, n4=3.7).shares(1)
    assert not costs(n4=1.0, n2=0.1, n8=2.0).shares(4)
