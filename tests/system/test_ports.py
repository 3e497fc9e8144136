"""Lists of memory ports: the RTL gives the golden device's logits through any of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.host.random_model import SHAPES, config_for, load, write_model
from tests.host.splits import check_split
from tests.host.tiles import compiled, golden, on_transport
from tests.system.small_architectures import config_of_engine, make

from lutra.devices.accelerator.rtl import RtlTransport
from lutra.quantize.pack import pack_model
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import PortParams, Purpose, striped_ports, two_ports
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.memory import IDEAL_MEMORY, random_timing

pytest.importorskip("gguf")

pytestmark = pytest.mark.usefixtures("no_coverage")

FETCH, LOAD, ATTENTION, WEIGHTS, WRITE = Purpose
# a head is 256 bits, a weight word 320
PORTS = {
    "one-narrow": (PortParams(width=32, purposes=tuple(Purpose), burst_bytes=128),),
    "narrow-data": two_ports(weights=1024, data=64, burst_bytes=256),
    "wide-data": two_ports(weights=64, data=1024),
    "three": (
        PortParams(width=128, purposes=(WEIGHTS, WRITE)),
        PortParams(width=512, purposes=(ATTENTION,), max_outstanding=2),
        PortParams(width=32, purposes=(FETCH, LOAD), burst_bytes=64),
    ),
    "five": tuple(
        PortParams(width=width, purposes=(purpose,), burst_bytes=128)
        for purpose, width in zip(Purpose, (1024, 512, 256, 512, 32), strict=True)
    ),
    # a word is three beats of both lanes, which share their ports with other reads
    "striped": (
        PortParams(width=64, purposes=(WEIGHTS, FETCH), burst_bytes=128),
        PortParams(width=32, purposes=(LOAD,), burst_bytes=64),
        PortParams(width=64, purposes=(WEIGHTS, ATTENTION, WRITE), burst_bytes=128),
    ),
    "striped-narrow": striped_ports(8, 32, max_outstanding=2, burst_bytes=64),
    # two words are a beat of both lanes
    "striped-wide": (
        *[PortParams(width=512, purposes=(WEIGHTS,))] * 2,
        PortParams(width=256, purposes=(FETCH, LOAD, ATTENTION, WRITE)),
    ),
}

THREE_PORTS = config_of_engine("lut", key_width=4, value_width=4).with_(
    name="lut-kv4-three", ports=PORTS["three"]
)
"""Of the small architectures, too."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return pack_model(load(write_model(tmp_path_factory.mktemp("model"), SHAPES["grouped"])))


def check(model: PackedModel, name: str, **changes: int) -> None:
    check_on(config_for(SHAPES["grouped"]).with_(name=name, ports=PORTS[name], **changes), model)


def check_on(config: AcceleratorConfig, model: PackedModel) -> None:
    found, sizes = compiled(model, config), (4, 3, 1, 1, 2, 4)
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, sum(sizes)).tolist()
    expected_of = golden(model)
    for timing in (IDEAL_MEMORY, random_timing(3)):
        device, position = on_transport(found, RtlTransport(timing=timing)), 0
        for size in sizes:
            tile = tokens[position : position + size]
            actual, expected = (each.run_tile(tile, position, 0) for each in (device, expected_of))
            np.testing.assert_array_equal(actual.logits, expected.logits)
            np.testing.assert_array_equal(actual.scale, expected.scale)
            np.testing.assert_array_equal(actual.argmax, expected.argmax)
            position += size
        # the residual stream goes through them, too
        texts = [tokens[:6], tokens[6:9]]
        check_split([device.device] * 2, expected_of.device, texts, (0, 1, 2))
        device.close()


@pytest.mark.rtl
def test_three_ports_of_an_engine_of_tables(tmp_path: Path) -> None:
    model = make(tmp_path)("mistral-window")
    check_on(THREE_PORTS, replace(model, key_bits=4, value_bits=4))


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("name", [*PORTS])
def test_the_rtl_gives_the_logits_of_the_golden_device(name: str, model: PackedModel) -> None:
    check(model, name)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-narrow", "wide-data"])
def test_a_cache_of_four_bits(name: str, model: PackedModel) -> None:
    check(replace(model, key_bits=4, value_bits=4), name, key_width=4, value_width=4)
