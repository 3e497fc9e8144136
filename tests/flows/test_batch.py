"""Sequences that are decoded together: what is compared, and what is counted."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.random_model import SHAPES, load, write_model

from lutra.devices.golden import GoldenDevice
from lutra.quantize.pack import pack_model
from lutra_flows.batch import check, cycles_per_token, decode
from lutra_golden.errors import LutraError


def test_decodes_sequences_together(tmp_path: Path) -> None:
    device = GoldenDevice()
    device.load(pack_model(load(write_model(tmp_path, SHAPES["least"]))))
    one, many = decode(device, 1, 3), decode(device, 3, 3)
    assert [len(step) for step in many] == [3] * 3
    check([step[:1] for step in many], one)
    assert len({tuple(result.logits[0]) for result in many[-1]}) == 3
    with pytest.raises(LutraError, match=r"^step 0 of sequence 0 differs from golden$"):
        check([step[1:2] for step in many], one)
    counted = [[replace(result, cycles=900 + 300 * n) for result in many[n]] for n in range(3)]
    assert cycles_per_token(counted) == 400
