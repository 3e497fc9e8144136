"""A client of SSH whose every host is this machine, with a home folder of its own.

Arguments: the home folder, the folder of programs, the bytes after which the link ends (0 for
never), and those of ssh.
"""

import os
import signal
import subprocess
import sys
import threading

home, path, limit, command = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[-1]
environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
process = subprocess.Popen(
    ["/bin/sh", "-c", f"echo Welcome to the board; {command}"],
    stdin=subprocess.PIPE,
    cwd=home,
    env=environment | {"HOME": home, "PATH": path},
)


def pump() -> None:
    """Carry bytes until the link ends."""
    assert process.stdin is not None
    left = limit or 1 << 62
    while left and (data := os.read(0, min(left, 1 << 16))):
        left -= len(data)
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except OSError:
            break
    if not left:
        print("Connection to the board closed by remote host.", file=sys.stderr, flush=True)
        process.stdin.close()
        process.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    process.stdin.close()


threading.Thread(target=pump, daemon=True).start()
sys.exit(process.wait())
