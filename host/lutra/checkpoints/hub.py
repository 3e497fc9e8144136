"""Models by their id on the Hugging Face Hub; downloaded once, then from the library's cache."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["download", "is_id"]

_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
_OTHERS = ["consolidated*", "*/*"]  # the same weights in another layout
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_id(name: str) -> bool:
    """True for an id as the Hub has them, ``owner/model``."""
    return _ID.fullmatch(name) is not None and not name.endswith(".gguf")


def download(name: str) -> Path:
    """The folder of a model on the Hub; without a network, of one that was downloaded before."""
    try:
        # by name, as the library's own annotations are not complete
        hub: Any = import_module("huggingface_hub")
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise LutraError(
            f"model {name!r} is neither a folder nor a file, and to download it huggingface_hub is "
            f"missing: run `{install_command()}`, or give a folder"
        ) from None
    try:
        folder = hub.snapshot_download(name, allow_patterns=_PATTERNS, ignore_patterns=_OTHERS)
    except GatedRepoError:
        reason = "is gated on the Hugging Face Hub: accept its terms there, "
        advice = "log in with `hf auth login`, and try again"
    except RepositoryNotFoundError:
        reason = "is neither a folder or file here nor a model on the Hugging Face Hub: "
        advice = "check its spelling, or log in with `hf auth login` if it is private"
    except LocalEntryNotFoundError:
        reason = "is neither a folder or file here nor downloaded, and the Hugging Face Hub cannot "
        advice = "be reached: check the path, or connect to the network and try again"
    except Exception as error:  # of the disk, or of whichever HTTP library it is built on
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"could not be downloaded from the Hugging Face Hub ({first}): "
        advice = "try again; what came already is kept"
    else:
        return Path(folder)
    raise LutraError(f"model {name!r} {reason}{advice}")
