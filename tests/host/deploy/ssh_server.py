"""An SSH server at a loopback port, for one user with a home folder of its own."""

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import asyncssh

__all__ = ["CLIENTS", "TARGET", "SshServer"]

TARGET = "me@127.0.0.1"
CLIENTS = ("asyncssh", "ssh")
"""Programs that reach the server: one of the tests, and OpenSSH's where it is installed."""


class SshServer:
    """The server, in a thread. ``files`` gets its keys; ``environment`` is that of a login."""

    def __init__(self, home: Path, files: Path, environment: Mapping[str, str]) -> None:
        self.home, self._files = home, files
        self._environment = {**environment, "HOME": str(home)}
        keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "user")}
        for name, key in keys.items():
            key.write_private_key(files / name)
            (files / name).chmod(0o600)
        self._host_key = keys["host"]
        (files / "authorized").write_bytes(keys["user"].export_public_key())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = self._run(self._listen())
        line = keys["host"].export_public_key().decode()
        (files / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {line}")

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> int:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self._host_key],
            authorized_client_keys=str(self._files / "authorized"),
            process_factory=self._serve,
            encoding=None,
        )
        return self._acceptor.get_port()

    async def _serve(self, process: asyncssh.SSHServerProcess) -> None:
        child = subprocess.Popen(
            ["/bin/sh", "-c", process.command or "true"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.home,
            env=self._environment,
        )
        try:
            await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
            code = await self._loop.run_in_executor(None, child.wait)
            await process.stdout.drain()
            await process.stderr.drain()
            process.exit(code)
        finally:
            child.kill()
            child.wait()

    def client(self, name: str, *, key: str = "user", known_hosts: str = "known_hosts") -> str:
        """Value of ``LUTRA_SSH`` for one of :data:`CLIENTS`."""
        files, common = self._files, ["-i", str(self._files / key), "-p", str(self.port)]
        if name == "ssh":
            path = shutil.which("ssh")
            assert path is not None
            options = ["-F", os.devnull, "-o", f"UserKnownHostsFile={files / known_hosts}"]
            return shlex.join([path, *common, *options, "-o", "IdentitiesOnly=yes"])
        script = Path(__file__).with_name("ssh_client.py")
        known = ["--known-hosts", str(files / known_hosts)]
        return shlex.join([sys.executable, str(script), *common, *known])

    def close(self) -> None:
        """Stop listening, and end what is connected."""

        async def end() -> None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
