"""The Verilated accelerator as a board: its agent, real registers, and the driver of boards."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.boards import SIZE, Emulated, Served, board
from tests.host.greedy_tokens import check_greedy
from tests.host.random_model import Shape, write_model
from tests.host.tiles import compiled, driver, golden, on_transport, run_tiles
from tests.hw.core.test_accelerator import SMALL

from lutra import LLM, SamplingParams
from lutra.devices.emulated.agent import RtlAccelerator
from lutra.models import load_model
from lutra.quantize.pack import pack_model

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]


def test_the_same_bits(tmp_path: Path) -> None:
    write_model(tmp_path, Shape(intermediate_size=48, num_hidden_layers=1))
    model, tokens = compiled(pack_model(load_model(tmp_path)), SMALL), [3, 1, 4, 1, 5, 9]
    expected = run_tiles(golden(model.model), tokens)
    accelerator = RtlAccelerator(SMALL, SIZE)
    with Served(accelerator) as served:
        tiles = on_transport(model, board(served.port))
        for sizes in ([3, 3], [1] * 6):
            result = run_tiles(tiles, tokens, sizes)
            np.testing.assert_array_equal(result.logits, expected.logits)
            np.testing.assert_array_equal(result.scale, expected.scale)
            np.testing.assert_array_equal(result.argmax, expected.argmax)
        result = tiles.run_tile([7], 6, 0)
        assert result.cycles == driver(tiles).counters()["cycles"]
        check_greedy(tiles.device, golden(model.model).device)
        tiles.close()
    accelerator.close()


@pytest.mark.slow
def test_a_pynq_z2_tells_a_story() -> None:
    """The shipped model on the board's own configuration, with attention in eight parts."""
    prompt, greedy = "Once upon a time there lived in a small house", SamplingParams(temperature=0)
    accelerator = Emulated("pynq_z2", seed=3)
    with Served(accelerator) as served:
        device = f"board://127.0.0.1:{served.port}"
        with LLM("tales", device, config="pynq_z2", check=True) as llm:
            done = llm.generate(prompt, 4, greedy)
            assert done.stats.bit_exact
            assert llm.device.facts()["config"] == "pynq_z2"
    accelerator.close()
