"""A cluster of Ray on this machine, for tests: nodes that can be killed and added."""

import os
import signal
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Nodes", "nodes"]


class Nodes:
    """A head, and nodes by the order in which they came."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self._nodes: dict[int, Any] = {}
        self._numbers = count()

    def add(self, **resources: float) -> int:
        """Add a node with these resources beside one CPU; its number."""
        number = next(self._numbers)
        self._nodes[number] = self._cluster.add_node(num_cpus=1, resources=resources, **_ports())
        self._cluster.wait_for_nodes()
        return number

    def kill(self, number: int) -> None:
        """End a node's processes without a word, actors first: as if its plug was pulled."""
        node = self._nodes.pop(number)
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in [*_children(raylet), raylet]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_all(self) -> None:
        """End all nodes but the head."""
        for number in list(self._nodes):
            self.kill(number)


def _ports() -> dict[str, int]:
    """Free ports of the agents of a node, which else have 15 seconds to start and to say theirs."""
    with ExitStack() as held:
        names = "metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port"
        sockets = [held.enter_context(socket.create_server(("", 0))) for _ in names]
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _children(parent: int) -> list[int]:
    """Numbers of the processes that a process has started."""
    found = list[int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # behind the name, which may have any characters
            state = path.read_text().rpartition(")")[2].split()
            if int(state[1]) == parent:
                found.append(int(path.parent.name))
    return found


@contextmanager
def nodes(**resources: float) -> Generator[Nodes]:
    """A cluster whose head has these resources; a test that needs it is skipped without Ray."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # devices compute as the tests do
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "resources": resources, **_ports()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()
