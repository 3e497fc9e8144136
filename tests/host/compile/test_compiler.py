"""Lowering: what the program contains, that its waits are sufficient, and what does not fit."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.random_model import LLAMAS, SHAPES, config_for, load, write_model
from tests.host.tiles import Compiled, compiled, on_transport

from lutra.checkpoints.weights import Ternary, Weight
from lutra.compile.compiler import compile_model
from lutra.compile.fit import check_fit, check_layer, engines_for
from lutra.compile.program import Program, SegmentKind
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.quantize.pack import pack_model
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import (
    FLAG_PLAIN,
    INSTRUCTION_BYTES,
    Instruction,
    NormSource,
    Opcode,
    Unit,
    decode,
)
from lutra_golden.control.memory import Memory
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.core.ports import two_ports
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import FORMATS, Format
from lutra_golden.model.packed import PackedLinear, PackedModel
from lutra_golden.model.shapes import LINEARS

Choose = Callable[[Sequence[Unit]], Unit]


def instructions_of(program: Program) -> list[Instruction]:
    code = program.code
    words = [code[i : i + INSTRUCTION_BYTES] for i in range(0, len(code), INSTRUCTION_BYTES)]
    return [decode(word) for word in words]


def matrices_of(program: Program) -> list[np.ndarray]:
    """Matrices that the engine multiplies by; those cut by rows are joined again."""
    config, found = program.config, list[list[np.ndarray]]()
    previous: Instruction | None = None
    for i in instructions_of(program):
        if i.opcode is Opcode.LMMA:
            shape = i.args["depth_tiles"], i.args["row_blocks"], i.args["planes"]
            n_words, image = i.args["n_words"], weights_of(program)[i.args["address"] :]
            words = config.weight_words(image[: config.weight_image_bytes(n_words)], n_words)
            words = words[:, : -(-config.matmul.word_bits // 8)]
            w = config.matmul.decode(words, *shape)
            if previous is not None and previous.opcode is Opcode.LMMA:
                ends = previous.args["acc_base"] + previous.args["row_blocks"]
                assert i.args["acc_base"] == ends
                assert i.args["shift"] == previous.args["shift"]
                found[-1].append(w)
            else:
                found.append([w])
        previous = i
    return [np.concatenate(parts) for parts in found]


# -- waits


def weights_of(program: Program) -> NDArray[np.uint8]:
    """The weight segments, one behind the other."""
    parts = [segment.data for segment in program.of(SegmentKind.WEIGHTS)]
    assert sum(map(len, parts)) == program.n_bytes(SegmentKind.WEIGHTS)
    return np.frombuffer(b"".join(parts), np.uint8)


def places(program: Program) -> tuple[int, int, int, int]:
    """Addresses of weights, KV cache and logits behind the code, and the end."""
    sizes = (
        len(program.code), program.weight_bytes, program.kv_bytes, program.logits_bytes,
    )  # fmt: skip
    weights, kv, logits, end = np.cumsum([-(-size // 4096) * 4096 for size in sizes]).tolist()
    return weights, kv, logits, end


class Machine:
    """The golden interpreter with units that run ahead of each other as far as waits allow."""

    def __init__(self, program: Program) -> None:
        self.program = program
        weights, kv, self.logits, end = places(program)
        memory = Memory(end)
        memory.write(0, program.code)
        memory.write(weights, weights_of(program))
        for offset, n_bytes in program.zeros:
            memory.write(kv + offset, bytes(n_bytes))
        self.interpreter = interpreter = Interpreter(program.config, memory)
        interpreter.registers |= {
            "PROGRAM_BASE": 0,
            "PROGRAM_BYTES": len(program.code),
            "WEIGHT_BASE": weights,
            "LOGITS_BASE": self.logits,
            "LOGITS_STRIDE": program.logits_stride,
        }
        self.kv = kv
        self.instructions = [i for i in interpreter.program() if i.opcode is not Opcode.END]

    def run(
        self,
        choose: Choose,
        tokens: Sequence[int],
        position: int,
        instructions: Sequence[Instruction] | None = None,
    ) -> bytes:
        """Execute a tile in an order that ``choose`` finds; return everything it leaves behind."""
        interpreter, n = self.interpreter, len(tokens)
        interpreter.registers |= {"N_TOKENS": n, "LOGITS_FROM": n // 2}
        interpreter.chunks[0] = ChunkEntry(position, kv_base=self.kv)
        interpreter.tokens[:n] = tokens
        self._poison()
        queues = {unit: deque[Instruction]() for unit in Unit}
        for instruction in instructions or self.instructions:
            unit = instruction.opcode.unit
            assert unit is not None
            queues[unit].append(instruction)
        done = dict.fromkeys(Unit, 0)
        while any(queues.values()):
            ready = [
                unit
                for unit, queue in queues.items()
                if queue and all(done[u] >= w for u, w in zip(Unit, queue[0].waits, strict=True))
            ]
            assert ready, "every unit waits for another"
            unit = choose(ready)
            interpreter.execute(queues[unit].popleft())
            done[unit] += 1
        return b"".join(self._results(n))

    def _poison(self) -> None:
        """Fill what one run must not take over from the one before."""
        x, rng = self.interpreter, np.random.default_rng(1)
        for buffer in (x.residual, x.params, x.rope, x.activations, x.acc, x.queries, x.attention):
            buffer[:] = rng.integers(-100, 100, buffer.shape)
        for scale in (x.scale, x.query_scale):
            scale.m[:], scale.e[:] = rng.integers(1 << 15, 1 << 16, scale.m.shape), -20

    def _results(self, n: int) -> Iterator[bytes]:
        interpreter, first = self.interpreter, n // 2
        for m in range(first, n):
            address = self.logits + m * self.program.logits_stride
            yield interpreter.memory.read(address, 4 * self.program.vocab_size).tobytes()
        yield interpreter.argmax[first:n].tobytes()
        yield interpreter.scale.m[first:n].tobytes()
        yield interpreter.scale.e[first:n].tobytes()


def in_order(program: Program) -> Choose:
    """Units as the program names them: what the interpreter does by itself."""
    order = (i.opcode.unit for i in instructions_of(program))

    def choose(ready: Sequence[Unit]) -> Unit:
        unit = next(order)
        assert unit is not None
        assert unit in ready
        return unit

    return choose


def by_priority(order: Sequence[Unit]) -> Choose:
    return lambda ready: min(ready, key=order.index)


def at_random(seed: int) -> Choose:
    rng = random.Random(seed)
    return lambda ready: rng.choice(ready)


PRIORITIES = list(permutations(Unit))


@pytest.mark.parametrize("name", SHAPES)
def test_waits_order_every_hazard(name: str, program: Callable[[str], Program]) -> None:
    """The logits do not depend on which units run ahead, as far as their waits allow."""
    machine = Machine(program(name))
    rng = np.random.default_rng(1)
    tile = machine.program.config.pass_tokens
    tokens = [int(t) for t in rng.integers(0, machine.program.vocab_size, 2 * tile)]
    expected = [
        machine.run(in_order(machine.program), tokens[:tile], 0),
        machine.run(in_order(machine.program), tokens[tile:], tile),
    ]
    assert expected[0] != expected[1]
    for choose in (*map(by_priority, PRIORITIES), *map(at_random, range(30))):
        for i, wanted in enumerate(expected):
            chunk = tokens[i * tile : (i + 1) * tile]
            assert machine.run(choose, chunk, i * tile) == wanted


def test_waits_of_the_shipped_model_order_every_hazard() -> None:
    model = pack_model(load(find_model("tales")))
    machine = Machine(compile_model(model, NANO))
    tokens = [0, 5, 300, 77]
    expected = machine.run(in_order(machine.program), tokens, 0)
    for choose in (*map(by_priority, PRIORITIES), *map(at_random, range(8))):
        assert machine.run(choose, tokens, 0) == expected


@pytest.mark.parametrize("name", ["least", "no-grouping"])
def test_a_missing_wait_is_seen(name: str, program: Callable[[str], Program]) -> None:
    """The test above would fail: without its waits, every instruction breaks the result.

    Except where an earlier instruction of the same unit has waited for as much.
    """
    machine = Machine(program(name))
    tokens = [3, 200, 7, 90]
    expected = machine.run(in_order(machine.program), tokens, 0)
    waited: dict[Unit, list[int]] = {unit: [0] * len(Unit) for unit in Unit}
    needed = 0
    for k, instruction in enumerate(machine.instructions):
        unit, waits = instruction.opcode.unit, instruction.waits
        assert unit is not None
        if all(now <= before for now, before in zip(waits, waited[unit], strict=True)):
            continue
        waited[unit] = list(map(max, waits, waited[unit]))
        needed += 1
        broken = list(machine.instructions)
        broken[k] = replace(broken[k], waits=(0, 0, 0, 0))
        results = (
            machine.run(choose, tokens, 0, broken) for choose in map(by_priority, PRIORITIES)
        )
        assert any(result != expected for result in results), broken[k]
    assert needed > len(machine.instructions) // 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_program_waits_for_nothing_behind_itself(
    name: str, program: Callable[[str], Program]
) -> None:
    before = dict.fromkeys(Unit, 0)
    for instruction in instructions_of(program(name)):
        unit = instruction.opcode.unit
        if unit is None:
            continue
        for other, wait in zip(Unit, instruction.waits, strict=True):
            assert wait <= before[other]
        assert instruction.waits[unit] == 0  # a unit keeps its order by itself
        before[unit] += 1


# -- contents


@pytest.mark.parametrize("name", SHAPES)
def test_program_is_what_a_model_needs(name: str, program: Callable[[str], Program]) -> None:
    shape, found = SHAPES[name], program(name)
    opcodes = [i.opcode for i in instructions_of(found)]
    n = shape.num_hidden_layers
    assert opcodes.count(Opcode.EMBED) == opcodes.count(Opcode.LDROPE) == 1
    assert opcodes.count(Opcode.NORMQ) == 4 * n + 1
    assert opcodes.count(Opcode.ROPEQ) == opcodes.count(Opcode.ATTEND) == n
    assert opcodes.count(Opcode.RESADD) == 2 * n
    chunks = opcodes.count(Opcode.LOGITS)
    assert opcodes.count(Opcode.LMMA) >= 4 * n + chunks
    assert opcodes.count(Opcode.LDPARAM) == 4 * n + 1 + chunks
    end = opcodes.index(Opcode.END)
    assert set(opcodes[end:]) == {Opcode.END}
    assert len(found.code) % found.config.word_bytes == 0
    assert (found.vocab_size, found.n_layers) == (shape.vocab_size, n)
    assert found.context == shape.max_position_embeddings


@pytest.mark.parametrize("name", SHAPES)
def test_segments_follow_each_other(name: str, program: Callable[[str], Program]) -> None:
    found = program(name)
    config, end = found.config, 0
    for segment in found.of(SegmentKind.WEIGHTS):
        assert segment.offset == end
        end += len(segment.data)
    assert end == found.n_bytes(SegmentKind.WEIGHTS)
    assert found.n_bytes(SegmentKind.CODE) == len(found.code)
    assert found.kv_bytes == found.n_layers * config.kv_layer_bytes
    assert found.logits_stride >= 4 * found.vocab_size
    assert found.logits_stride % config.word_bytes == 0
    assert found.logits_bytes == config.pass_tokens * found.logits_stride
    for offset, n_bytes in found.zeros:
        assert 0 <= offset <= offset + n_bytes <= found.kv_bytes


@pytest.mark.parametrize("name", SHAPES)
def test_operands_lie_in_the_image_and_in_the_buffers(
    name: str, program: Callable[[str], Program]
) -> None:
    found = program(name)
    config, size = found.config, found.n_bytes(SegmentKind.WEIGHTS)
    for i in instructions_of(found):
        args = i.args
        if i.opcode is Opcode.LDPARAM:
            assert args["address"] % config.word_bytes == 0
            assert args["address"] + 16 * args["n_words"] <= size
            assert args["param_word"] + args["n_words"] <= config.vector.param_words
            assert 16 * args["n_words"] % config.word_bytes == 0
        elif i.opcode is Opcode.LMMA:
            assert args["address"] % config.weight_word_bytes == 0
            assert args["address"] + args["n_words"] * config.weight_word_bytes <= size
            assert args["acc_base"] + args["row_blocks"] <= config.matmul.acc_blocks
            assert args["depth_tiles"] <= config.matmul.act_tiles
            words = config.matmul.n_words(1, args["row_blocks"], args["planes"])
            least = config.matmul.n_words(1, 2, args["planes"])
            assert words <= max(config.matmul.weight_buffer_words // 2, least)
            assert args["shift"] == 0
        elif i.opcode is Opcode.LOGITS:
            assert args["row_first"] * 4 % config.word_bytes == 0
            assert args["param_word"] + args["n_words"] <= config.vector.param_words
            assert args["n_words"] % 2 == args["acc_base"] % 2 == 0


def codes(weight: Weight) -> np.ndarray:
    assert isinstance(weight, Ternary)
    return weight.codes


def test_weights_are_in_the_image_in_the_order_of_the_engine(
    checkpoint: Callable[[str], Decoder], program: Callable[[str], Program]
) -> None:
    model, found = checkpoint("grouped"), program("grouped")
    matrices = matrices_of(found)

    def matrix(index: int, n: int, k: int) -> np.ndarray:
        w = matrices[index]
        assert w.shape[0] == n
        assert not w[:, k:].any()
        return w[:, :k]

    layer, d, f = model.layers[0], 64, 96
    qkv = matrix(0, 256, d)
    heads = np.concatenate([codes(layer.q_proj), codes(layer.k_proj), codes(layer.v_proj)])
    for head in range(8):
        for block in range(4):  # lo, hi, lo, hi
            first = head * 32 + block % 2 * 16 + block // 2 * 8
            np.testing.assert_array_equal(
                qkv[head * 32 + 8 * block :][:8], heads[first : first + 8]
            )
    np.testing.assert_array_equal(matrix(1, d, 128), codes(layer.o_proj))
    gate_up = matrix(2, 2 * f, d).reshape(-1, 2, 8, d)
    np.testing.assert_array_equal(gate_up[:, 0].reshape(f, d), codes(layer.gate_proj))
    np.testing.assert_array_equal(gate_up[:, 1].reshape(f, d), codes(layer.up_proj))
    np.testing.assert_array_equal(matrix(3, d, f), codes(layer.down_proj))


def test_head_is_split_into_chunks_that_alternate(
    packed: Callable[[str], PackedModel], program: Callable[[str], Program]
) -> None:
    chunks = [i.args for i in instructions_of(program("grouped")) if i.opcode is Opcode.LOGITS]
    assert len(chunks) > 2
    row = 0
    for previous, chunk in zip([None, *chunks], chunks, strict=False):
        assert chunk["row_first"] == row
        row += 8 * chunk["n_words"]
        if previous:
            ends = previous["acc_base"] + previous["n_words"]
            assert chunk["acc_base"] >= ends or chunk["acc_base"] == 0 != previous["acc_base"]
    assert row == packed("grouped").vocab_size
    matmuls = [i.args for i in instructions_of(program("grouped")) if i.opcode is Opcode.LMMA]
    assert {args["planes"] for args in matmuls[-len(chunks) :]} == {5}


@pytest.mark.parametrize(
    "sizes", [{}, {"acc_blocks": 72}, {"acc_blocks": 72, "weight_buffer_words": 64}]
)
def test_chunks_of_the_head_are_whole_words_of_logits(
    sizes: dict[str, int], tmp_path: Path
) -> None:
    """Words of 128 bytes, and 301 rows that end in the middle of one."""
    shape = replace(SHAPES["least"], head_dim=128, vocab_size=301)
    model = pack_model(load(write_model(tmp_path, shape)))
    config = config_for(shape).with_(**sizes)
    assert (config.word_bytes, config.logits_blocks) == (128, 4)
    found = compile_model(model, config)
    chunks = [i.args for i in instructions_of(found) if i.opcode is Opcode.LOGITS]
    assert 8 * sum(chunk["n_words"] for chunk in chunks) == 320
    for chunk in chunks:
        assert chunk["n_words"] % 4 == chunk["row_first"] // 8 % 4 == 0
        assert chunk["acc_base"] + chunk["n_words"] <= config.matmul.acc_blocks


def test_compiling_is_deterministic_and_reports_progress(
    packed: Callable[[str], PackedModel],
) -> None:
    config, seen = config_for(SHAPES["least"]), []
    a = compile_model(packed("least"), config, lambda stage, share: seen.append((stage, share)))
    b = compile_model(packed("least"), config)
    assert a == b
    assert [stage for stage, _ in seen] == ["packing the weights"] * 2
    assert [share for _, share in seen] == [0.0, 0.5]


def test_fingerprints_tell_models_and_configurations_apart(
    packed: Callable[[str], PackedModel],
) -> None:
    model, config = packed("least"), config_for(SHAPES["least"])
    other = replace(model, head=-model.head)
    prints = {
        compile_model(model, config).fingerprint,
        compile_model(other, config).fingerprint,
        compile_model(model, config.with_(act_tiles=config.matmul.act_tiles + 1)).fingerprint,
    }
    assert len(prints) == 3
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


# -- fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_max": 32},
            r"the residual buffer needs 64, has 32 \(32 missing\): set hidden_max=64 or more",
        ),
        (
            {"act_tiles": 3},
            (
                r"the activation buffer \(depth tiles\) needs 6, has 3 \(3 missing\): "
                "set act_tiles=6 or more"
            ),
        ),
        (
            {"acc_blocks": 30},
            (
                r"the accumulator buffer \(row blocks\) needs 32, has 30 \(2 missing\): "
                "set acc_blocks=32 or more"
            ),
        ),
        (
            {"weight_buffer_words": 8},
            (
                r"the weight buffer \(words\) needs 10, has 8 \(2 missing\): "
                "set weight_buffer_words=16 or more"
            ),
        ),
        (
            {"param_words": 32},
            (
                r"the parameter buffer \(words\) needs 64, has 32 \(32 missing\): "
                "set param_words=64 or more"
            ),
        ),
        (
            {"acc_width": 19},
            r"the accumulator \(bits\) needs 20, has 19 \(1 missing\): set acc_width=20 or more",
        ),
        (
            {"gate_width": 12},
            (
                r"a gate accumulator \(bits\) needs 14, has 12 \(2 missing\): "
                "set gate_width=14 or more"
            ),
        ),
    ],
)
def test_a_buffer_that_is_too_small_is_named(
    changes: dict[str, int], message: str, packed: Callable[[str], PackedModel]
) -> None:
    model, config = packed("grouped"), config_for(SHAPES["grouped"])
    check_fit(model, config)
    expected = f"^configuration small is too small for the model: {message}$"
    with pytest.raises(LutraError, match=expected):
        compile_model(model, config.with_(**changes))


@pytest.mark.parametrize(
    ("changes", "name", "built", "needed"),
    [
        ({"head_dim": 64}, "head_dim", 64, 32),
        ({"n_heads": 2}, "n_heads", 2, 4),
        ({"n_kv_heads": 4}, "n_kv_heads", 4, 2),
    ],
)
def test_heads_must_be_the_configurations(
    changes: dict[str, int],
    name: str,
    built: int,
    needed: int,
    packed: Callable[[str], PackedModel],
) -> None:
    config = config_for(SHAPES["grouped"]).with_(**changes)
    message = (
        f"^configuration small is built for {name} {built}, the model has {needed}: "
        f"use a configuration with {name}={needed}$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(packed("grouped"), config)


@pytest.mark.parametrize(("kv_bits", "kv_width"), [(8, 4), (4, 8)])
def test_the_cache_must_be_the_configurations(
    kv_bits: int, kv_width: int, packed: Callable[[str], PackedModel]
) -> None:
    model = replace(packed("grouped"), key_bits=kv_bits, value_bits=kv_bits)
    with pytest.raises(LutraError) as error:
        config = config_for(SHAPES["grouped"])
        compile_model(model, config.with_(key_width=kv_width, value_width=kv_width))
    assert str(error.value) == (
        f"configuration small is built for a KV cache of {kv_width} bits, the model is packed for "
        f"{kv_bits}: give --kv {kv_width} to lutra pack or lutra quantize, or use a configuration "
        f"with key_width={kv_bits} and value_width={kv_bits}"
    )


def test_what_is_read_before_it_is_written_is_zeroed(
    packed: Callable[[str], PackedModel],
) -> None:
    """The whole cache with two positions per beat, otherwise the scales only."""
    model, config = packed("grouped"), config_for(SHAPES["grouped"])
    for kv_bits in (8, 4):
        built = config.with_(key_width=kv_bits, value_width=kv_bits)
        found = compile_model(replace(model, key_bits=kv_bits, value_bits=kv_bits), built)
        first = built.kv_s_offset if kv_bits == 8 else 0
        size = built.kv_layer_bytes
        assert found.zeros == [(i * size + first, size - first) for i in (0, 1)]


@pytest.mark.parametrize("changes", [{"hidden_size": 72}, {"intermediate_size": 100}])
def test_sizes_that_do_not_divide_are_refused(
    changes: dict[str, int], packed: Callable[[str], PackedModel]
) -> None:
    with pytest.raises(LutraError, match=r"^hidden_size must be a multiple of 32 and .*: pad the "):
        compile_model(replace(packed("grouped"), **changes), config_for(SHAPES["grouped"]))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [
        {"acc_blocks": 256},
        {"weight_buffer_words": 1024},
        {"acc_blocks": 256, "weight_buffer_words": 1024},
        {"acc_blocks": 98, "weight_buffer_words": 128},
        {"param_words": 1024, "acc_blocks": 512, "weight_buffer_words": 4096},
        {
            "step_depth": 48,
            "depth_tile": 48,
            "ports": two_ports(weights=1024, data=256),
            "max_context": 64,
            "pass_tokens": 7,
        },
    ],
)
def test_logits_do_not_depend_on_the_sizes_of_buffers(
    name: str,
    changes: dict[str, int],
    packed: Callable[[str], PackedModel],
    program: Callable[[str], Program],
) -> None:
    """A configuration larger in any one way holds the model, and computes the same."""
    larger = compile_model(packed(name), config_for(SHAPES[name]).with_(**changes))
    results = []
    for each in (program(name), larger):
        tiles = on_transport(Compiled(packed(name), each))
        results.append([tiles.run_tile([5, 9], 0, 0), tiles.run_tile([1], 2, 0)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a.logits, b.logits)
        np.testing.assert_array_equal(a.scale, b.scale)
        np.testing.assert_array_equal(a.argmax, b.argmax)


# -- engines and formats

ON_ENGINES = [
    ("llama", "lut", "W1A8"),
    ("llama-odd", "lut", "W4A8"),
    ("llama-grouped", "mixpe", "W4A16"),
    ("llama-odd", "mac", "W3A8"),
]


def llama_program(
    packed_llama: Callable[[str, str], PackedModel], name: str, engine: str, format: str
) -> Program:
    model = packed_llama(name, format)
    config = config_for(LLAMAS[name], engine, a_width=model.a_bits)
    return compile_model(model, config)


@pytest.mark.parametrize(("name", "engine", "format"), ON_ENGINES)
def test_waits_of_a_llama_order_every_hazard(
    name: str, engine: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    machine = Machine(llama_program(packed_llama, name, engine, format))
    tokens = [3, 200, 7, 90]
    expected = machine.run(in_order(machine.program), tokens, 0)
    for choose in (*map(by_priority, PRIORITIES), *map(at_random, range(8))):
        assert machine.run(choose, tokens, 0) == expected


@pytest.mark.parametrize(("name", "engine", "format"), ON_ENGINES)
def test_a_llama_is_lowered_to_what_it_needs(
    name: str, engine: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    found = llama_program(packed_llama, name, engine, format)
    # one bit is named with the size of its groups
    assert found.format == ("W1g32A8" if format == "W1A8" else format)
    n = LLAMAS[name].num_hidden_layers
    norms = [i for i in instructions_of(found) if i.opcode is Opcode.NORMQ]
    layer = [
        (NormSource.RESIDUAL, 0),
        (NormSource.ATTENTION, FLAG_PLAIN),
        (NormSource.RESIDUAL, 0),
        (NormSource.SWIGLU, FLAG_PLAIN),
    ]
    assert [(i.args["source"], i.flags & FLAG_PLAIN) for i in norms] == [
        *layer * n,
        (NormSource.RESIDUAL, 0),
    ]


@pytest.mark.parametrize(("name", "engine", "format"), ON_ENGINES)
def test_grouped_weights_are_in_the_image(
    name: str, engine: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama(name, format)
    found = llama_program(packed_llama, name, engine, format)
    matmuls = [i.args for i in instructions_of(found) if i.opcode is Opcode.LMMA]
    matrices = matrices_of(found)
    layer, d, f = model.layers[0], model.hidden_size, model.intermediate_size
    np.testing.assert_array_equal(matrices[1], layer.o_proj.weights.doubled())
    both = matrices[2].reshape(-1, 2, 8, d)
    np.testing.assert_array_equal(both[:, 0].reshape(f, d), layer.gate_proj.weights.doubled())
    np.testing.assert_array_equal(both[:, 1].reshape(f, d), layer.up_proj.weights.doubled())
    np.testing.assert_array_equal(matrices[3], layer.down_proj.weights.doubled())
    head = np.concatenate(matrices[4 * len(model.layers) :])
    np.testing.assert_array_equal(head[: model.vocab_size], 2 * model.head.astype(int))
    assert matmuls[0]["shift"] == layer.q_proj.shift
    assert matmuls[-1]["shift"] == model.head_shift


@pytest.mark.parametrize(("engine", "format"), [("lut", "W4A8"), ("lut", "W8A8"), ("mac", "W8A8")])
def test_a_matrix_is_cut_so_that_half_the_weight_buffer_holds_a_pass(
    engine: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama("llama-odd", format)
    config = config_for(LLAMAS["llama-odd"], engine).with_(weight_buffer_words=64)
    found = compile_model(model, config)
    parts = [i.args for i in instructions_of(found) if i.opcode is Opcode.LMMA]
    words = [config.matmul.n_words(1, p["row_blocks"], p["planes"]) for p in parts]
    assert max(words) <= 32
    assert len(parts) > 4 * len(model.layers) + 8


def test_rows_are_padded_to_the_tile(packed_llama: Callable[[str, str], PackedModel]) -> None:
    """The paper's tile, 64 rows of four activations at once; 1040 rows end inside a tile."""
    model = packed_llama("llama-grouped", "W2A8")
    config = config_for(LLAMAS["llama-grouped"], "lut").with_(
        step_tokens=2, step_rows=64, step_depth=4, acc_blocks=32, weight_buffer_words=1024
    )
    found = compile_model(model, config)
    parts = [i.args for i in instructions_of(found) if i.opcode is Opcode.LMMA]
    assert all(p["row_blocks"] % 8 == p["acc_base"] % 8 == 0 for p in parts)
    results = []
    for program in (found, llama_program(packed_llama, "llama-grouped", "lut", "W2A8")):
        tiles = on_transport(Compiled(model, program))
        results.append(tiles.run_tile([5, 9, 700], 0, 0).logits)
    np.testing.assert_array_equal(*results)


def test_which_engines_run_a_format() -> None:
    for name in FORMATS:
        grouped = ["lut", "mixpe", "mac"]
        expected = ["ternary", *grouped, "lookup"] if name == "W1.58A8" else grouped
        assert engines_for(Format.parse(name)) == expected


def test_an_engine_that_does_not_run_the_format(
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    message = (
        "^engine ternary does not run W4A8, only ternary weights with one scale per matrix and "
        "8-bit activations with one scale per token: use engine lut, mixpe or mac$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(packed_llama("llama", "W4A8"), config_for(LLAMAS["llama"]))


@pytest.mark.parametrize(("format", "built", "needed"), [("W4A16", 8, 16), ("W4A8", 16, 8)])
def test_activations_of_another_width(
    format: str, built: int, needed: int, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    config = config_for(LLAMAS["llama"], "lut", a_width=built)
    message = (
        f"^configuration small is built for activations of {built} bits, {format} has {needed}: "
        f"use a configuration with a_width={needed}$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(packed_llama("llama", format), config)


def test_depths_that_are_no_whole_tiles(packed: Callable[[str], PackedModel]) -> None:
    config = config_for(SHAPES["odd"], "lut", depth_tile=64)
    message = (
        r"^hidden_size is 160, not a multiple of depth_tile \(64\), which engine lut of "
        r"configuration "
        "small needs: use a smaller depth_tile$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(packed("odd"), config)


def test_groups_that_are_no_whole_tiles(packed_llama: Callable[[str, str], PackedModel]) -> None:
    config = config_for(LLAMAS["llama-whole"], "lut", depth_tile=64)
    message = (
        "^groups of 32 are not whole depth tiles of configuration small: "
        r"use groups that are a multiple of depth_tile \(64\)$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(packed_llama("llama-whole", "W4A8"), config)


def _with_scales(model: PackedModel, factor: int, bits: int) -> PackedModel:
    """The same model: its group scales ``factor`` times as large, ``bits`` more to round."""

    def wider(linear: PackedLinear) -> PackedLinear:
        weights = replace(linear.weights, scale=linear.weights.scale * factor)
        return replace(linear, source=weights, shift=linear.shift + bits)

    layers = [
        replace(layer, **{name: wider(layer.linear(name)) for name in LINEARS})
        for layer in model.layers
    ]
    return replace(model, layers=layers, scale_bits=model.scale_bits + bits)


@pytest.mark.parametrize("declared", [True, False])
def test_scales_that_are_wider_than_the_engines_are_refused(
    declared: bool, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    """Scales that the model declares, and scales that only its layers have."""
    model = packed_llama("llama", "W4A8")
    config = config_for(LLAMAS["llama"], "mac")
    for factor, bits in ((2, 9), (257, 16)):
        wide = _with_scales(model, factor, bits - 8)
        message = (
            "^configuration small is built for group scales of 8 bits, the model has scales of "
            f"{bits}: use a configuration with scale_width={bits}$"
        )
        with pytest.raises(LutraError, match=message):
            compile_model(wide if declared else replace(wide, scale_bits=8), config)
        compile_model(wide, config_for(LLAMAS["llama"], "mac", scale_width=bits))


@pytest.mark.parametrize(
    ("scale_width", "message"),
    [
        (
            8,
            (
                "shifts sums by up to 15 bits, the model needs 32: "
                "use a configuration with scale_width=9 or more"
            ),
        ),
        (9, "shifts sums by up to 31 bits, the model needs 32: the model's rows are too deep"),
    ],
)
def test_shifts_that_are_wider_than_the_engines_are_refused(
    scale_width: int, message: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama("llama", "W4A8")
    (layer,) = model.layers
    deep = replace(layer, down_proj=replace(layer.down_proj, shift=32))
    config = config_for(LLAMAS["llama"], "lut", scale_width=scale_width)
    with pytest.raises(LutraError, match=f"^configuration small {message}$"):
        compile_model(replace(model, layers=[deep]), config)


def test_a_sum_leaves_room_for_half_of_what_is_rounded(
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    """The engine adds it before the first depth tile."""
    model = packed_llama("llama", "W8A8")
    (layer,) = model.layers
    name = max(LINEARS, key=lambda name: layer.linear(name).peak)
    worst = layer.linear(name)
    highest = worst.peak * 127
    bits = highest.bit_length() + 1
    config = config_for(LLAMAS["llama"], "lut", scale_width=9, sum_width=bits)
    check_layer(model, layer, config)
    # half of what this shift rounds away is more than the bits have room for
    shift = (2 * ((1 << (bits - 1)) - 1 - highest)).bit_length()
    rounded = replace(layer, **{name: replace(worst, shift=shift)})
    message = rf"a sum of the engine \(bits\) needs {bits + 1}, has {bits}"
    with pytest.raises(LutraError, match=message):
        check_layer(model, rounded, config)


@pytest.mark.parametrize(("engine", "depth_tile"), [("lut", 16), ("mixpe", 32), ("mac", 16)])
def test_scales_of_sixteen_bits_give_the_same_logits(
    engine: str, depth_tile: int, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    """Scales 256 times as large and eight bits more to round: the same numbers to the last bit."""
    name = "llama-grouped"
    model = packed_llama(name, "W4A8")
    step_depth = {"step_depth": 16} if engine == "lut" else {}
    results = []
    for packed, changes in ((model, {}), (_with_scales(model, 256, 8), {"scale_width": 16})):
        config = config_for(LLAMAS[name], engine, depth_tile=depth_tile, **step_depth, **changes)
        tiles = on_transport(compiled(packed, config))
        results.append(tiles.run_tile([3, 1000, 7], 0, 0).logits)
    np.testing.assert_array_equal(*results)
    assert results[0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum_width": 22, "acc_width": 20}, r"a sum of the engine \(bits\) needs \d+, has 22"),
        ({"acc_width": 20}, r"the accumulator \(bits\) needs \d+, has 20"),
        ({"weight_buffer_words": 8}, r"the weight buffer \(words\) needs 16, has 8 \(8 missing\)"),
        ({"act_tiles": 2}, r"the activation buffer \(depth tiles\) needs 4, has 2"),
    ],
)
def test_what_a_grouped_engine_lacks_is_named(
    changes: dict[str, int], message: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama("llama-grouped", "W8A8")
    config = config_for(LLAMAS["llama-grouped"], "lut")
    check_fit(model, config)
    with pytest.raises(LutraError, match=f"^configuration small is too small .*: {message}"):
        compile_model(model, config.with_(**changes))


def test_the_shipped_models_fit_every_engine_that_runs_them() -> None:
    for name, formats in (("tales", ["W1.58A8"]), ("tales-llama", ["W1A8", "W8A8", "W8A16"])):
        source = load_model(find_model(name))
        for format in map(Format.parse, formats):
            model = pack_model(source, format)
            assert set(engines_for(format)) <= set(ENGINES)
            for engine in engines_for(format):
                check_fit(model, with_engine(NANO, engine, a_width=format.a_bits))


def test_sums_that_the_ternary_engine_would_have_to_shift(
    packed: Callable[[str], PackedModel],
) -> None:
    """The ternary engine refuses shifts, however wide its adders are."""
    model = replace(packed("least"), head_shift=2)
    message = (
        "^engine ternary does not shift sums, and the model's have 1 too many bits: "
        "use engine lut, mixpe or mac$"
    )
    with pytest.raises(LutraError, match=message):
        compile_model(model, config_for(SHAPES["least"], sum_width=25))
    compile_model(model, config_for(SHAPES["least"], "mac", depth_tile=16))
