"""The search for ranges in C has the bits of the one in NumPy, on every target of this machine."""

import shutil
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import lutra.devices.cpu.library as library_module
from lutra.devices.cpu.build import BuildError
from lutra.devices.cpu.library import library, library_if, target_names
from lutra.quantize import ranges
from lutra.quantize.ranges import CompiledRanges, Ranges, can_compile
from lutra.quantize.rtn import choose_grid, round_to_nearest
from lutra_golden.errors import LutraError

Single = NDArray[np.float32]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def weights(n: int, n_groups: int, group: int) -> Single:
    """Heavy tails, rows of different sizes, groups of zeros and of one sign."""
    rng = np.random.default_rng(group)
    w = rng.standard_t(4, (n, n_groups, group)) * np.exp(rng.normal(0, 1, (n, 1, 1)))
    w[1, 0], w[2] = 0, np.abs(w[2])
    w[3, 0] *= 1e-37  # smaller than the steps that have an inverse
    return w.astype(np.float32)


def check_same(w: Single, weigh: Single | None, levels: int, target: str) -> None:
    """Steps, errors and zero points on three units."""
    clips, ternary = np.geomspace(1, 0.45, 5), levels == 2
    expected = Ranges(w, weigh, clips, levels, ternary)
    found = CompiledRanges(w, weigh, clips, levels, ternary, target)
    np.testing.assert_array_equal(found.free, expected.free)
    assert found.whole == expected.whole
    for unit in (expected.free.max() / 255, expected.whole / 255, expected.whole / 20):
        best, best_expected = found.on_unit(unit), expected.on_unit(unit)
        for name in ("error", "step", "zero"):
            np.testing.assert_array_equal(getattr(best, name), getattr(best_expected, name))


@needs_compiler
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 15, 63, 255])
@pytest.mark.parametrize("group", [1, 3, 16, 21, 32, 64, 128])
def test_every_target_has_the_same_bits(group: int, levels: int) -> None:
    w = weights(7, 3, group)
    weigh = np.random.default_rng(levels).lognormal(0, 2, (3, group)).astype(np.float32)
    for target in (name for name, here in target_names().items() if here):
        check_same(w, None, levels, target)
        check_same(w, weigh, levels, target)


@needs_compiler
def test_matrices_are_the_same_whoever_searches() -> None:
    """Of more chunks than one, in float32 and in float64, which is searched in NumPy alone."""
    library()
    w = weights(700, 4, 64).reshape(700, 256)
    assert can_compile(w) and not can_compile(w.astype(np.float64))
    importance = np.random.default_rng(1).lognormal(0, 1, 256).astype(np.float32)
    for weigh in (None, importance):
        found = choose_grid(w, 3, 64, weigh)
        expected = choose_grid(w, 3, 64, weigh, compiled=False)
        assert found.unit == expected.unit
        np.testing.assert_array_equal(found.scale, expected.scale)
        np.testing.assert_array_equal(found.zero, expected.zero)


@needs_compiler
def test_a_target_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges._best_target.cache_clear()
    monkeypatch.setenv("LUTRA_CPU_TARGET", "z80")
    try:
        with pytest.raises(LutraError, match=r"^LUTRA_CPU_TARGET must be one of .*, not 'z80'$"):
            round_to_nearest(weights(4, 1, 32).reshape(4, 32), 4, 32)
    finally:
        ranges._best_target.cache_clear()


def test_without_a_library_small_matrices_compile_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And large ones only if there is a compiler: it is not asked again."""
    asked, looks = list[int](), list[str]()

    def refuses(*_: object) -> None:
        asked.append(1)
        raise BuildError("no compiler")

    def absent(golden: str) -> bool:
        looks.append(golden)
        return False

    fresh: list[Callable[[], None]] = [library_module._compiled.cache_clear, library.cache_clear]
    fresh.append(library_module._is_there.cache_clear)
    for clear in fresh:
        clear()
    monkeypatch.setattr(library_module, "library_path", refuses)
    monkeypatch.setattr(library_module, "is_compiled", absent)
    try:
        assert library_if(worth=False) is None and library_if(worth=False) is None
        assert len(looks) == 1 and not asked
        assert library_if(worth=True) is None and library_if(worth=True) is None
        assert asked == [1]
        assert not can_compile(np.zeros((1024, 1024), np.float32))
    finally:
        for clear in fresh:
            clear()
