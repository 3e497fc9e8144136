"""Calls of device functions under the interpreter, without the work that has been done already.

Triton remaps its language for interpretation at every call of a function within a kernel, which
takes longer than most functions do. Of our own functions the kernel's launch has remapped it, since
all use the same ``triton.language``; what Triton's own library uses stays remapped after once.

Nor are sums and products computed a second time in 64 bits to look for overflow: what is found is
reported with debugging only, and our sums may wrap on the way to a result that fits.
"""

from dataclasses import replace

from triton.runtime import interpreter

__all__ = ["install"]

_remapped: set[str] = set()


def _call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    """Call a device function of a kernel that runs."""
    module = str(function.fn.__module__)
    if module.startswith("triton.") and module not in _remapped:
        _remapped.add(module)
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*args, **kwargs)


def install() -> None:
    """Let device functions be called so, in this process."""
    interpreter.InterpretedFunction.__call__ = _call
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
