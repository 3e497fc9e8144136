"""``lutra lend``: a device of this machine for a Lutra elsewhere."""

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from lutra.commands.options import add_place, whole
from lutra.devices.accelerator.agent import AgentError, make_key, read_key
from lutra.devices.choose import choose_device
from lutra.devices.hardware import LENT_SCHEME
from lutra.devices.remote.lender import LendingServer
from lutra.devices.remote.link import LENT_PORT
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError

__all__ = ["add_lend"]


def add_lend(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra lend``."""
    add_place(parser, "auto", "auto, the fastest that works")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=LENT_PORT,
        help="port (default %(default)s, 0 for any)",
    )  # fmt: skip
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="address other than loopback; it needs --key"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="shared key that hosts must have")
    parser.add_argument("--make-key", type=Path, metavar="FILE", help="write a new key, and end")
    parser.set_defaults(command=_lend)


def _lend(args: argparse.Namespace) -> int:
    try:
        if args.make_key is not None:
            make_key(args.make_key)
            return 0
        key = None if args.key is None else read_key(args.key)
    except AgentError as error:
        raise LutraError(str(error)) from None
    if args.listen is not None and key is None:
        raise LutraError("--listen needs a shared key: add --key FILE (see --make-key)")
    host = args.listen or "127.0.0.1"
    with StepProgress() as progress:
        device, notes = choose_device(
            args.device, config=args.config, threads=args.threads, emulate=args.emulate,
            bitstream=args.bitstream, progress=progress,
        )  # fmt: skip
    for note in notes:
        _say(f"note: {note}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, args.port), family=family)
    except OSError as error:
        raise LutraError(
            f"{host} port {args.port} cannot be listened at ({error.strerror or error}): give "
            "another --listen or --port"
        ) from None
    signal.signal(signal.SIGTERM, _stop)
    with LendingServer(device, listening, key, _say) as server:
        place = f"[{host}]" if ":" in host else host
        print(f"lending {device.name}: {LENT_SCHEME}{place}:{server.port}", flush=True)
        server.wait()
    return 0


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
