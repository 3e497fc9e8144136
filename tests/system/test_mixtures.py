"""Tokens of several sequences in one pass of the RTL: the golden device's logits, bit for bit."""

import numpy as np
import pytest
from tests.host.mixtures import check_mixtures
from tests.host.random_model import SHAPES, config_for, load, write_model
from tests.host.tiles import Compiled, compiled, golden, on_transport

from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Step
from lutra.quantize.pack import pack_model
from lutra_golden.timing.memory import IDEAL_MEMORY, MemoryTiming, random_timing

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

PASS_TOKENS, N_SEQUENCES, N_TOKENS = 5, 6, 17


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = write_model(tmp_path_factory.mktemp("model"), SHAPES["grouped"])
    return compiled(
        pack_model(load(folder)), config_for(SHAPES["grouped"], pass_tokens=PASS_TOKENS)
    )


@pytest.mark.parametrize("timing", [IDEAL_MEMORY, *map(random_timing, (4, 5))])
def test_mixtures_of_sequences(found: Compiled, timing: MemoryTiming) -> None:
    rng = np.random.default_rng(timing.seed)
    texts = rng.integers(0, found.model.vocab_size, (N_SEQUENCES, N_TOKENS)).tolist()
    device = on_transport(found, RtlTransport(timing=timing)).device
    check_mixtures(device, golden(found.model).device, texts, timing.seed)
    device.close()


def test_sequences_share_the_fetch_of_the_weights(found: Compiled) -> None:
    """A token of each of several sequences reads as many weights as one token."""
    device = on_transport(found, RtlTransport(timing=IDEAL_MEMORY)).device
    sessions = [device.session() for _ in range(PASS_TOKENS)]
    beats = set[int]()
    for n in (1, PASS_TOKENS):
        device.run([Step(session=session, tokens=[7]) for session in sessions[:n]])
        beats.add(device.counters()["weight_read_beats"])
    assert len(beats) == 1
    device.close()
