"""Writing of Tcl: words that mean themselves."""

import re

__all__ = ["word"]


def word(text: str) -> str:
    """``text`` as one word of Tcl, whatever it contains."""
    if re.fullmatch(r"[\w./:=@*+-]+", text):
        return text
    if re.search(r"[{}\\\n]", text):
        raise ValueError(f"a word of Tcl must have no braces, backslashes or lines, not {text!r}")
    return f"{{{text}}}"
