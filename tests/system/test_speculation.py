"""Drafts on the simulated accelerator: tokens and logits are golden's, a token a pass."""

from collections.abc import Callable

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.random_model import SHAPES, config_for
from tests.host.serving.speculation.same import SAMPLINGS, check_requests
from tests.host.tiles import Compiled, driver, on_transport

from lutra.compile.compiler import compile_model
from lutra.devices.accelerator.rtl import RtlTransport
from lutra_golden.model.packed import PackedModel

pytestmark = [pytest.mark.rtl, pytest.mark.slow, pytest.mark.usefixtures("no_coverage")]


def test_requests_at_once(packed: Callable[[str], PackedModel]) -> None:
    model = packed("least")
    program = compile_model(model, config_for(SHAPES["least"]))
    device = driver(on_transport(Compiled(model, program), RtlTransport()))
    try:
        check_requests(device, 12, 3, 4, SAMPLINGS[:2])
    finally:
        device.close()
