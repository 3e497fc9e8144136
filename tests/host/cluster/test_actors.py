"""A server on devices of a cluster of Ray: two nodes on this machine, and the end of one."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.host.cluster_nodes import Nodes, nodes
from tests.host.random_model import Shape, load, write_model
from tests.host.server.served import TEMPLATE

from lutra import LLM, SamplingParams
from lutra.cluster.actors import RayCluster
from lutra.devices.base import Device, DeviceError, Step
from lutra.devices.golden import GoldenDevice
from lutra.quantize.pack import pack_model
from lutra.server.app import make_app
from lutra.server.limits import Limits
from lutra.server.run import HttpServer, address, listen
from lutra.server.service import Service
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

pytestmark = pytest.mark.slow
PROMPT = [5, 17, 3, 40, 8, 23]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "m", Shape(max_position_embeddings=256))


@pytest.fixture(scope="module")
def model(folder: Path) -> PackedModel:
    return pack_model(load(folder))


@pytest.fixture(scope="module")
def ray_head() -> Generator[Nodes]:
    with nodes() as found:
        yield found


@pytest.fixture
def ray_nodes(ray_head: Nodes) -> Generator[Nodes]:
    yield ray_head
    ray_head.kill_all()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def greedy(device: Device, n: int, between: Callable[[int], object] = lambda _: None) -> list[int]:
    """Tokens that follow the prompt; ``between`` is called before each."""
    session, made = device.session(), list[int]()
    tokens = PROMPT
    for i in range(n):
        between(i)
        [result] = device.run([Step(session=session, tokens=tokens)])
        made.append(int(result.argmax[-1]))
        tokens = made[-1:]
    session.close()
    return made


def alone(model: PackedModel, n: int) -> list[int]:
    device = GoldenDevice()
    device.load(model)
    return greedy(device, n)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_node_that_is_killed_in_mid_request(
    at: int, ray_nodes: Nodes, model: PackedModel
) -> None:
    """The request goes on on the other device, with the same tokens; a node that comes in its
    place has work again."""
    node = ray_nodes.add(fpga=1)
    with RayCluster(ray_nodes.address, "fpga:golden,cpu:golden") as cluster:
        assert [re.sub(" at .*", "", each) for each in cluster.places] == [
            "fpga#1 (golden)",
            "cpu#2 (golden)",
        ]
        device = cluster.device
        device.load(model)
        expected = alone(model, 8)
        assert greedy(device, 8) == expected

        def kill(i: int) -> None:
            if i == at:
                ray_nodes.kill(node)

        assert greedy(device, 8, kill) == expected
        assert device.sites == [1]
        assert "device fpga#1 is left out: " in device.notes[0]
        assert " waits for lutra://" in device.notes[0]
        if at:
            return
        ray_nodes.add(fpga=1)
        until(lambda: device.sites == [0, 1])
        assert device.notes[-1] == "device fpga#1 is back"
        assert greedy(device, 8) == expected


def test_the_last_node_is_killed(ray_nodes: Nodes, model: PackedModel) -> None:
    node = ray_nodes.add(spare=1, fpga=1)
    with RayCluster(ray_nodes.address, "fpga:golden") as cluster:
        cluster.device.load(model)
        session = cluster.device.session()
        cluster.device.run([Step(session=session, tokens=PROMPT)])
        ray_nodes.kill(node)
        with pytest.raises(DeviceError, match="a step of 1 tokens waits for lutra://"):
            cluster.device.run([Step(session=session, tokens=[1])])


def test_what_is_not_there(ray_nodes: Nodes) -> None:
    with pytest.raises(LutraError, match="of the resource GPU are asked for, the cluster has 0"):
        RayCluster(ray_nodes.address, "gpu")
    with pytest.raises(LutraError, match=r"no Ray cluster answers at 127.0.0.1:1 "):
        RayCluster("127.0.0.1:1")


def test_a_server_whose_node_is_killed_while_it_streams(ray_nodes: Nodes, folder: Path) -> None:
    """Clients see the text that one device gives, and streams that are under way go on."""
    node = ray_nodes.add(fpga=1)
    body = {"prompt": "the king", "max_tokens": 200, "temperature": 0.0, "ignore_eos": True}
    with LLM(folder, "golden") as llm:
        sampling = SamplingParams(temperature=0, ignore_eos=True)
        expected = llm.generate("the king", 200, sampling).text
    service = Service(Limits())
    listening = listen("127.0.0.1", 0)
    with (
        RayCluster(ray_nodes.address, "fpga:golden,cpu:golden") as cluster,
        LLM(folder, cluster.device) as llm,
        HttpServer(make_app(service), listening),
    ):
        llm.set_chat_template(TEMPLATE)
        service.start(llm)
        url = f"{address(listening)}/v1/completions"
        texts: dict[int, str] = {}
        begun = threading.Barrier(5)

        def ask(i: int) -> None:
            texts[i] = stream(url, {**body, "stream": True}, begun)

        clients = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for each in clients:
            each.start()
        begun.wait(WAIT_S)
        ray_nodes.kill(node)
        for each in clients:
            each.join(WAIT_S)
        assert texts == dict.fromkeys(range(4), expected)
        assert cluster.device.sites == [1]
        assert "device fpga#1 is left out: " in cluster.device.notes[0]
        after = httpx.post(url, json=body, timeout=WAIT_S).json()
        assert after["choices"][0]["text"] == expected
        service.close()


def test_the_command(ray_nodes: Nodes, folder: Path) -> None:
    """``lutra serve --ray`` from its first line to its end."""
    options = ["--ray", ray_nodes.address, "--ray-devices", "cpu:golden", "--port", "0"]
    command = [sys.executable, "-m", "lutra", "serve", "-m", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            line = run.stdout.readline()
            found = re.fullmatch(r"serving .* on plan: (http://127.0.0.1:\d+/v1)\n", line)
            assert found is not None, line
            body = {"prompt": "the king", "max_tokens": 5, "temperature": 0.0}
            response = httpx.post(f"{found[1]}/completions", json=body, timeout=WAIT_S)
            assert response.json()["usage"]["completion_tokens"] == 5
            run.send_signal(signal.SIGTERM)
            assert run.wait(WAIT_S) == 0
        finally:
            run.kill()


def stream(url: str, body: dict[str, Any], begun: threading.Barrier) -> str:
    """The text of a stream, which waits at ``begun`` behind its third piece."""
    text, n = "", 0
    with httpx.stream("POST", url, json=body, timeout=WAIT_S) as response:
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            text += json.loads(line[6:])["choices"][0]["text"]
            n += 1
            if n == 3:
                begun.wait(WAIT_S)
    return text
