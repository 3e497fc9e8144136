"""``lutra serve``: a model as a server with OpenAI's interface."""

import argparse
import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lutra.commands.options import (
    Place,
    add_chat_template,
    add_model,
    add_place,
    add_speculation,
    check_kv,
    given_chat_template,
    place,
    real,
    rounding,
    whole,
)
from lutra.llm import LLM
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

if TYPE_CHECKING:
    from lutra.cluster.actors import RayCluster

__all__ = ["add_serve"]

_KEY = "LUTRA_API_KEY"


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra serve``."""
    add_model(parser)
    add_chat_template(parser)
    add_place(parser, "auto", "auto, the fastest that works")
    add_speculation(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default %(default)s, this machine alone; 0.0.0.0 for all)",
    )
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8080, help="port (default %(default)s, 0 for any)"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(_KEY) or None,
        help=f"key that clients must send (default: the environment's {_KEY}, which other users "
        "of this machine do not see; without one anyone who reaches the port may ask)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run requests on devices of the Ray cluster at this address (auto: the one of this "
        "machine, local: one that is started for this server)",
    )
    parser.add_argument(
        "--ray-devices",
        metavar="A,B",
        help="devices to take there, such as fpga,2*gpu or 2*cpu (default: each fpga and GPU, or a "
        "cpu if there is none)",
    )
    parser.add_argument(
        "-np",
        "--parallel",
        type=whole(1, 1024),
        default=16,
        metavar="N",
        help="completions on the device at a time, if it has the memory (default %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=whole(0, 65536),
        default=256,
        metavar="N",
        help="completions that wait for that; more are refused with status 429 "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=whole(1),
        metavar="N",
        help="tokens of an answer at most (default: to the context's end)",
    )
    parser.add_argument(
        "--max-body",
        type=whole(1),
        default=4096,
        metavar="KIB",
        help="size of a request at most, in KiB (default %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=real("above 0", lambda seconds: seconds > 0),
        default=600.0,
        metavar="S",
        help="seconds that an answer may take, waiting included (default 600)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin, such as https://example.org, read answers; may be "
        "given several times (default: none)",
    )
    parser.add_argument(
        "--log-prompts",
        action="store_true",
        help="write prompts into the log (default: method, path, status and seconds only)",
    )
    parser.set_defaults(command=_serve)


def _serve(args: argparse.Namespace) -> int:
    for name in ("fastapi", "uvicorn"):
        if find_spec(name) is None:
            raise LutraError(
                f"lutra serve needs {name}, which is missing: run `{install_command('serve')}`"
            )
    from lutra.server.app import make_app
    from lutra.server.limits import Limits
    from lutra.server.run import HttpServer, address, is_loopback, listen, local_names, until_told
    from lutra.server.service import Service
    from lutra.text.template_process import TemplateProcess

    if args.ray is not None and args.device != "auto":
        raise LutraError("--ray chooses devices itself: give --ray-devices instead of -dev")
    if args.ray_devices is not None and args.ray is None:
        raise LutraError("--ray-devices are those of a cluster: add --ray ADDRESS")
    check_kv(args.kv, args.device, falls_back=True)
    template = given_chat_template(args)
    if template is not None:
        with TemplateProcess(template, {}) as process:
            process.check()
    if args.api_key is not None and not _is_key(args.api_key):
        raise LutraError("--api-key must be printable ASCII without spaces: give another one")
    limits = Limits(
        parallel=args.parallel,
        queue=args.queue,
        body_bytes=args.max_body << 10,
        tokens=args.max_tokens,
        seconds=args.timeout,
    )
    # a port in use is refused before anything is loaded
    listening = listen(args.host, args.port)
    local = is_loopback(args.host)
    if not local and args.api_key is None:
        _note(
            f"warning: anyone who reaches {address(listening)} may use this server: add --api-key "
            "KEY"
        )
    service = Service(limits)
    # pages on the web cannot make up a key, so that names need no check with one
    hosts: Sequence[str] | None = local_names(args.host) if local and not args.api_key else None
    app = make_app(
        service,
        key=args.api_key,
        hosts=hosts,
        origins=args.cors,
        log_prompts=args.log_prompts,
    )
    with (
        _log_on_stderr(),
        HttpServer(app, listening) as http,
        _cluster(args) as cluster,
        _load(args, cluster) as llm,
        until_told() as wait,
    ):
        service.start(llm, template)
        for note in llm.notes:
            _note(f"note: {note}")
        at = address(listening)
        print(f"serving {llm.packed.name} on {llm.device.name}: {at}/v1", flush=True)
        wait()
        service.closing = True
        http.close()
        service.close()
    return 0


def _cluster(args: argparse.Namespace) -> "RayCluster | nullcontext[None]":
    """The cluster whose devices run the model, if one is asked for."""
    if args.ray is None:
        return nullcontext()
    from lutra.cluster.actors import RayCluster
    from lutra.devices.choose import DeviceOptions

    options = DeviceOptions(
        config=args.config,
        engine=args.engine,
        threads=args.threads,
        emulate=args.emulate,
        bitstream=args.bitstream,
    )
    return RayCluster(args.ray, args.ray_devices, options)


def _load(args: argparse.Namespace, cluster: "RayCluster | None") -> LLM:
    if cluster is not None:
        for each in cluster.places:
            _note(f"note: {each}")
    with StepProgress() as progress:
        return LLM(
            args.model,
            args.device if cluster is None else cluster.device,
            **rounding(args),
            # devices of a cluster are made there, with their options
            **(place(args) if cluster is None else Place()),
            parallel=args.parallel,
            speculation=args.speculate,
            progress=progress,
        )


def _is_key(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


@contextmanager
def _log_on_stderr() -> Generator[None]:
    """Write the server's log to standard error."""
    logger, handler = logging.getLogger("lutra.server"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
