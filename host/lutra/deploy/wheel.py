"""A wheel of the Lutra that runs here, for any platform, from a checkout or an installed copy."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from lutra_golden.errors import LutraError
from lutra_golden.install import DISTRIBUTION, install_command

__all__ = ["PACKAGES", "own_wheel"]

PACKAGES = ("lutra", "lutra_flows", "lutra_golden", "lutra_hw", "lutra_kernels", "lutra_sim")
_COMPILED = {".so", ".dylib", ".pyd", ".pyc"}
"""Files of this machine; the CPU device's library is compiled where it is used."""
_TIME = (1980, 1, 1, 0, 0, 0)


def own_wheel() -> tuple[str, bytes]:
    """Name and bytes of the wheel; the same sources give the same."""
    try:
        own = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise LutraError(
            f"Lutra's own metadata is missing: install it with `{install_command()}`"
        ) from None
    files = dict(_files())
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(data), data))
    # pip replaces a version by another one only
    version = f"{own.version}+{digest.hexdigest()[:12]}"
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    files |= _metadata(own, version, f"{stem}.dist-info")
    return f"{stem}-py3-none-any.whl", _archive(files, f"{stem}.dist-info/RECORD")


def _files() -> Iterator[tuple[str, bytes]]:
    """Path in the wheel and bytes of every file of the packages."""
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise LutraError(f"{package} is not installed: run `{install_command()}`")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix not in _COMPILED:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _metadata(own: Distribution, version: str, folder: str) -> dict[str, bytes]:
    text = own.read_text("METADATA") or ""
    head, _, body = text.partition("\n\n")
    lines = [line for line in head.splitlines() if not line.startswith("License-File:")]
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in lines]
    return {
        f"{folder}/METADATA": ("\n".join(lines) + "\n\n" + body).encode(),
        f"{folder}/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: lutra\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{folder}/entry_points.txt": (own.read_text("entry_points.txt") or "").encode(),
    }


def _archive(files: dict[str, bytes], record: str) -> bytes:
    rows = [f"{name},sha256={_hash(data)},{len(data)}" for name, data in files.items()]
    files[record] = ("\n".join([*rows, f"{record},,"]) + "\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
