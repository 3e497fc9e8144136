"""Cases for the interpreting process; run by ``test_harness.py`` only."""

import os

import pytest

pytestmark = pytest.mark.interpreted


def test_passes() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_fails() -> None:
    print("seen before the failure")
    assert 1 + 1 == 3


def test_skips() -> None:
    pytest.skip("for this reason")


@pytest.mark.xfail
def test_is_expected_to_fail() -> None:
    raise AssertionError


def test_ends_the_process() -> None:
    os._exit(3)


def test_comes_after_it() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
