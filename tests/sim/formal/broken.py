"""Modules with a fault, to prove that a check can fail."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["broken_module"]


def broken_module(name: str, old: str, new: str) -> ModuleType:
    """Module ``name`` with ``old``, which it has once, replaced by ``new``; not in sys.modules."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {name}"
    module = ModuleType(name)
    module.__file__, module.__package__ = spec.origin, spec.parent
    # dataclasses and annotations look their module up while it is executed
    original = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(compile(source.replace(old, new), spec.origin, "exec"), module.__dict__)
    finally:
        if original is None:
            del sys.modules[name]
        else:
            sys.modules[name] = original
    return module
