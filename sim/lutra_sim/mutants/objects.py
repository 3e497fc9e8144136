"""C compiler for libraries with a fault: keeps objects, since a fault changes few of them.

``python -m lutra_sim.mutants.objects cc ARGUMENT...`` is ``cc ARGUMENT... -O1``, an option that
prevails: a library is used once, so optimising takes longest.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lutra_golden.machine import cache_root

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the compiler, or take the object that it made before; returns its exit status."""
    command = [*(sys.argv[1:] if arguments is None else arguments), "-O1"]
    if "-c" not in command:
        return subprocess.run(command, check=False).returncode
    at = command.index("-o") + 1
    output, command[at] = Path(command[at]), "-"
    listed = subprocess.run([*command, "-MM"], capture_output=True, text=True, check=False)
    if listed.returncode:
        sys.stderr.write(listed.stderr)
        return listed.returncode
    # the same sources elsewhere give the same object
    digest = hashlib.sha256("\0".join(x for x in command if "/" not in x).encode())
    for name in listed.stdout.replace("\\\n", " ").split()[1:]:
        digest.update(Path(name).read_bytes() + b"\0")
    folder = cache_root() / "mutants" / "objects"
    kept = folder / f"{digest.hexdigest()[:32]}.o"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch) / kept.name
            command[at] = str(partial)
            status = subprocess.run(command, check=False).returncode
            if status:
                return status
            os.replace(partial, kept)
    shutil.copyfile(kept, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
