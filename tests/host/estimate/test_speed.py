"""Figures of an estimate beside the formulas that they are from, and what is refused."""

from dataclasses import replace

import pytest

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.estimate.outline import open_outline
from lutra.estimate.speed import TARGETS, estimate
from lutra.open_model import open_packed_model
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing
from lutra_golden.timing.decode import pass_cycles
from lutra_golden.timing.memory import NANO_MEMORY

BITNET = "random:bitnet-2b-4t"
TOO_LARGE = (
    f"{BITNET} in W1.58A8 needs 1,425 MiB for its weights and 10 MiB for keys and values "
    "(1 x 129 positions), board kv260 has 1,000 MiB: give --config u50, which has 8,192 MiB"
)
TOO_LONG = (
    "a prompt of 128 tokens and a token behind 4096 positions need 4097 positions, "
    f"{BITNET} has 4096: give -p 128 -c 4095"
)


@pytest.fixture(scope="module")
def tales() -> PackedModel:
    return open_outline("tales")


@pytest.mark.parametrize("target", TARGETS)
def test_passes_are_those_of_the_formulas(target: str, tales: PackedModel) -> None:
    """A prompt of 19 in passes of 8, 8 and 3; a token of each of 9 sequences in 8 and 1."""
    found = estimate(tales, target, prompt=19, context=40, sequences=9)
    board = BOARD_PROFILES.get(target)
    config = configure(replace(tales, context=41), target)
    clock = config.clock_hz if board is None else board.clock_hz
    memory = NANO_MEMORY if board is None else board_timing(board, config)

    def cycles(position: int, tokens: int, logits: int, sequences: int = 1) -> int:
        layers = range(len(tales.layers))
        return pass_cycles(
            tales, config, position, tokens, logits, layers=layers, memory=memory,
            n_sequences=sequences,
        )  # fmt: skip

    prompt = cycles(0, 8, 0) + cycles(8, 8, 0) + cycles(16, 3, 1)
    token = cycles(40, 8, 8, 8) + cycles(40, 1, 1)
    assert (found.prefill.cycles, found.decode.cycles) == (prompt, token)
    assert found.prefill.tokens_per_s == pytest.approx(19 * clock / prompt)
    assert found.decode.tokens_per_s == pytest.approx(9 * clock / token)
    assert found.ttft_s == pytest.approx(9 * prompt / clock)
    assert found.kind == "modelled"


def test_a_token_is_decoded_behind_the_prompt(tales: PackedModel) -> None:
    assert estimate(tales, "nano", prompt=20).context == 20
    assert estimate(tales, "nano", prompt=20, context=0).context == 0


@pytest.mark.parametrize("name", ["tales", "tales-llama"])
def test_memory_is_that_of_the_program(name: str) -> None:
    """Norms and instructions are left out: less than 1 %."""
    packed = open_packed_model(name)
    program = compile_model(packed, configure(packed, "kv260"))
    found = estimate(open_outline(name), "kv260", prompt=packed.context - 1).memory
    assert found.kv == program.kv_bytes
    assert 0.99 < found.weights / sum(len(each.data) for each in program.segments) < 1
    assert found.available == BOARD_PROFILES["kv260"].buffer_bytes


def test_a_phase_is_bound_by_what_takes_most_of_it() -> None:
    """A token of 2B waits for its weights, a prompt for the engine."""
    found = estimate(open_outline(BITNET), "u55c")
    assert found.decode.limit[0] == "weights on their memory port"
    assert found.prefill.limit[0] == "products of the matmul engine"
    assert 0.9 < found.decode.limit[1] < 1
    # two bits and what fills up words: 0.22 bytes for each of 2.08 billion, and five for the head
    products = [part for part in found.decode.parts if part.unit == "matmul"]
    assert sum(part.n_bytes for part in products) == pytest.approx(837e6, rel=0.01)
    assert all(part.waits for part in products)
    assert not any(part.waits for part in found.prefill.parts if part.name != "head")


def test_weights_wait_if_they_do_in_every_pass(tales: PackedModel) -> None:
    """Those of eight tokens come in time for all but the first, those of one do not."""
    waits = [
        any(part.waits for part in estimate(tales, "u55c", prompt=n).prefill.parts[:-2])
        for n in (1, 8, 9)
    ]
    assert waits == [True, False, False]


def test_attention_binds_a_long_context() -> None:
    found = estimate(open_outline("random:qwen3-0.6b"), "u50", context=32000)
    assert found.decode.limit[0] == "the attention unit"


@pytest.mark.parametrize(
    ("name", "target", "sizes", "message"),
    [
        (
            BITNET, "kv260", {},
            TOO_LARGE,
        ),
        ("random:qwen3-8b", "u55c", {"context": 4000, "sequences": 60}, "give -b 24 or less"),
        ("random:qwen2.5-0.5b", "kv260", {"context": 20000}, "give -c 16383 -p 16383 -b 1 or less"),
        ("random:qwen3-8b", "u55c", {"context": 40000, "sequences": 9}, "give -b 1 or less"),
        (
            BITNET, "u50", {"context": 4096},
            TOO_LONG,
        ),
        (BITNET, "nano", {"prompt": 5000}, "give -p 4096 -c 4095"),
        ("tales", "v80", {}, "--config must be one of kv260, u50, u55c, pynq_z2, nano, not 'v80'"),
    ],
)  # fmt: skip
def test_refusals(name: str, target: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(LutraError) as refusal:
        estimate(open_outline(name), target, **sizes)  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "target", "sizes", "advice"),
    [
        ("random:qwen3-8b", "u55c", {"context": 4000}, {"sequences": 24}),
        ("random:qwen2.5-0.5b", "kv260", {"context": 16383}, {"prompt": 16383}),
    ],
)
def test_what_is_advised_works(
    name: str, target: str, sizes: dict[str, int], advice: dict[str, int]
) -> None:
    model = open_outline(name)
    assert not estimate(model, target, **sizes, **advice).memory.missing  # type: ignore[arg-type]


def test_a_model_that_no_board_holds() -> None:
    with pytest.raises(LutraError, match=r"give fewer bits \(--format\) or a smaller model"):
        estimate(open_outline("random:qwen3-8b", "W8A8", head_bits=8), "u50", sequences=900)
