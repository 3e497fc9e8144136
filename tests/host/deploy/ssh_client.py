"""A client of SSH for machines without OpenSSH's: the options that Lutra gives, and no others."""

import argparse
import asyncio
import sys

import asyncssh


async def run(args: argparse.Namespace) -> int:
    """Run the command on the host, with this program's input and output."""
    user, _, host = args.target.rpartition("@")
    try:
        connection = await asyncssh.connect(
            host, args.port, username=user, client_keys=[args.key], known_hosts=args.known_hosts,
            config=None,
        )  # fmt: skip
    except asyncssh.PermissionDenied:
        print(f"{args.target}: Permission denied (publickey).", file=sys.stderr)
        return 255
    except (OSError, asyncssh.Error) as error:
        print(f"ssh: {error}", file=sys.stderr)
        return 255
    process = await connection.create_process(args.command, encoding=None)
    await process.redirect(stdin=sys.stdin.buffer, stdout=sys.stdout.buffer, stderr=2)
    done = await process.wait()
    connection.close()
    await connection.wait_closed()
    return 255 if done.returncode is None else done.returncode


parser = argparse.ArgumentParser()
parser.add_argument("-i", dest="key")
parser.add_argument("-p", dest="port", type=int)
parser.add_argument("--known-hosts")
parser.add_argument("-T", action="store_true")
parser.add_argument("-o", action="append")
parser.add_argument("target")
parser.add_argument("command")
sys.exit(asyncio.run(run(parser.parse_args())))
