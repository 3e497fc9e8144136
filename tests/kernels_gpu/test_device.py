"""The device ``cuda`` in Triton's interpreter, beside golden's decoder."""

import gc
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.host.devices.test_xrt import InterpretedKernel
from tests.host.quantize.random_decoder import in_products
from tests.host.serving.plans.mortal import die_at_any_call, hand_over_at_every_token
from tests.host.serving.plans.test_device import KINDS, plans
from tests.host.serving.speculation.same import SAMPLINGS, check_requests
from tests.host.serving.test_batch import GREEDY, Client, alone, finish
from tests.kernels_gpu.models import Golden, small_model, tokens_of

from lutra.compile.configure import configure
from lutra.devices.auto import AutoDevices
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.choose import choose_device
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice, describe_gpu
from lutra.devices.emulated.card import EmulatedCard
from lutra.devices.golden import GoldenDevice
from lutra.devices.pages import NoRoom
from lutra.quantize.pack import pack_model
from lutra.serving.batch import Batch
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.layout import Plan, RowShare, by_rows
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.shapes import LINEARS
from lutra_golden.timing.boards import find_profile
from lutra_kernels import runner
from lutra_kernels.cache import KvCache
from lutra_kernels.pool import KvPool

pytestmark = [pytest.mark.interpreted, pytest.mark.usefixtures("few_programs")]
PAGE, SPLIT_FROM = 32, 8


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pages of a short context, whose attention is split early."""
    monkeypatch.setattr(CudaDevice, "page", PAGE)
    monkeypatch.setattr(runner, "Runner", partial(runner.Runner, split_from=SPLIT_FROM))


def loaded(model: PackedModel, memory_limit: int | None = None) -> CudaDevice:
    device = CudaDevice(memory_limit=memory_limit)
    device.load(model)
    return device


def check(found: StepResult, expected: tuple[np.ndarray, np.ndarray], logits_from: int = 0) -> None:
    """Logits, scales and arg-max are golden's."""
    logits, scale = (each[logits_from:] for each in expected)
    np.testing.assert_array_equal(found.logits, logits)
    np.testing.assert_array_equal(found.scale, scale)
    np.testing.assert_array_equal(found.argmax, logits.argmax(axis=1))
    assert found.logits.dtype == np.int64 and found.residual is None and not found.saturated


def same(a: SequenceKv, b: SequenceKv) -> bool:
    return a.to_bytes() == b.to_bytes()


@pytest.mark.parametrize(
    ("variant", "format", "kv", "layers"),
    [
        ("bitnet", None, 8, 1),
        ("llama", "W4A8", 4, 2),
        ("qwen2-window", "W2A8", 8, 2),
        ("qwen3", "W2A16", 4, 1),
    ],
)
def test_sessions_side_by_side(variant: str, format: str | None, kv: int, layers: int) -> None:
    """Prefill of both, drafts beside decode, decode of both split over the keys, and not."""
    model = small_model(variant, format, kv, layers)
    device, goldens = loaded(model), [Golden(model), Golden(model)]
    sessions = [device.session(), device.session()]
    tokens = [tokens_of(model, 20, seed) for seed in (0, 1)]

    def run(counts: Sequence[int], logits_from: Sequence[int]) -> None:
        steps: list[Step] = []
        expected: list[tuple[np.ndarray, np.ndarray]] = []
        for i, (n, first) in enumerate(zip(counts, logits_from, strict=True)):
            if n:
                done = sessions[i].length
                ids = tokens[i][done : done + n]
                steps.append(Step(session=sessions[i], tokens=ids, logits_from=first))
                expected.append(goldens[i].run(ids))
        found = device.run(steps)
        for step, result, each in zip(steps, found, expected, strict=True):
            check(result, each, step.logits_from)

    run([7, 3], [0, 3])
    run([1, 2], [0, 0])
    run([1, 1], [0, 0])  # at 8 and 5: split
    sessions[0].truncate(6)
    goldens[0].length = 6
    run([1, 1], [0, 0])  # at 6 and 6: not split
    assert [session.length for session in sessions] == [7, 7]
    for session, golden in zip(sessions, goldens, strict=True):
        assert same(session.export(), golden.export())


def test_drafts_leave_tokens_as_they_are() -> None:
    """Requests at once, with right and wrong drafts, greedy and drawn."""
    device = loaded(small_model("llama", "W4A8", 8, 1))
    check_requests(device, 8, 3, 3, SAMPLINGS[:2])
    device.close()


def with_offsets(model: PackedModel) -> PackedModel:
    """Its matrices of keys and values and of the gate with an offset for each group."""
    rng, layers = np.random.default_rng(2), list[PackedLayer]()
    for layer in model.layers:
        parts = dict[str, PackedLinear]()
        for name in LINEARS:
            linear = layer.linear(name)
            weights = linear.weights
            if name in ("k_proj", "v_proj", "gate_proj"):
                offset = rng.integers(-2000, 2001, weights.scale.shape) << (name == "k_proj")
                weights = replace(weights, offset=offset)
            parts[name] = PackedLinear(weights, linear.scale, 9)
        layers.append(replace(layer, **parts))
    return replace(model, layers=layers, offsets=True)


@pytest.mark.parametrize(
    ("variant", "format", "groups", "offsets"),
    [
        ("bitnet", None, ActivationGroups(size=64), False),
        ("llama", "W4A8", ActivationGroups(), True),
        ("qwen3-wide-heads", "W3A8", ActivationGroups(size=128, shift_max=3), False),
        ("llama", "W4A8", None, True),
    ],
)
def test_activations_in_groups_and_offsets(
    variant: str, format: str | None, groups: ActivationGroups | None, offsets: bool
) -> None:
    """Heads of 48 in rows of 64 keep groups of their own."""
    head_dim = 48 if variant == "qwen3-wide-heads" else 16
    model = small_model(variant, format, layers=1, head_dim=head_dim, a_groups=groups)
    model = with_offsets(model) if offsets else model
    device, golden = loaded(model), Golden(model)
    session, tokens = device.session(), tokens_of(model, 7)
    for part in (tokens[:5], tokens[5:6], tokens[6:]):
        (found,) = device.run([Step(session=session, tokens=part, logits_from=0)])
        check(found, golden.run(part))


@pytest.mark.parametrize(
    ("variant", "head_bits", "groups", "a_bits"),
    [
        ("llama", 4, None, 8),
        ("llama-untied", 8, None, 8),
        ("llama", 8, ActivationGroups(), 8),
        ("llama-untied", 4, None, 16),
    ],
)
def test_embedding_and_head_in_codes(
    variant: str, head_bits: int, groups: ActivationGroups | None, a_bits: int
) -> None:
    """Prompt and decode, of rows that all have logits and of those of which some have."""
    model = small_model(variant, f"W4A{a_bits}", layers=1, a_groups=groups, head_bits=head_bits)
    assert model.vocabulary is not None
    assert model.vocabulary.tied == (variant == "llama")
    device, golden = loaded(model), Golden(model)
    session, tokens = device.session(), tokens_of(model, 9)
    for part, first in ((tokens[:6], 0), (tokens[6:8], 1), (tokens[8:], 0)):
        (found,) = device.run([Step(session=session, tokens=part, logits_from=first)])
        check(found, golden.run(part), first)


def test_a_ternary_vocabulary_and_one_with_offsets() -> None:
    """Codes that packing keeps as they are: without groups, and other codes for the embedding."""
    model = small_model("bitnet", None, layers=1, head_bits=4)
    assert model.vocabulary is not None
    rng, n, k = np.random.default_rng(3), model.vocab_size, model.hidden_size
    first, last = model.vocabulary.embedding, model.vocabulary.head
    offsets = GroupedWeights(
        codes=rng.integers(0, 64, (n, k), np.uint8),
        scale=rng.integers(1, 1000, (n, k // 32)),
        zero=np.zeros((n, k // 32), np.int64),
        bits=6,
        group=32,
        offset=rng.integers(-20_000, 1, (n, k // 32)),
    )
    trits = GroupedWeights.from_integers(rng.integers(-1, 2, (n, k)).astype(np.int8))
    coded = replace(
        model.vocabulary,
        embedding=replace(first, source=offsets, scale=Scale(first.scale.m, first.scale.e - 4)),
        head=replace(last, source=trits, shift=1),
    )
    model = replace(model, vocabulary=coded)
    device, golden, tokens = loaded(model), Golden(model), tokens_of(model, 3)
    (found,) = device.run([Step(session=device.session(), tokens=tokens, logits_from=0)])
    check(found, golden.run(tokens))


def test_two_levels() -> None:
    """Layers, embedding and head as K-quants have them."""
    model = pack_model(in_products(), None, 32, offsets=True, head_bits=8)
    assert model.layers[0].gate_proj.stored.levels is not None
    model = replace(model, layers=model.layers[:1])
    device, golden, tokens = loaded(model), Golden(model), tokens_of(model, 3)
    (found,) = device.run([Step(session=device.session(), tokens=tokens, logits_from=0)])
    check(found, golden.run(tokens))


def test_a_run_is_cut_into_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "pass_tokens", 4)
    model = small_model("bitnet", None, layers=1)
    device = loaded(model)
    tokens = [tokens_of(model, n, n) for n in (6, 3)]
    found = device.run([Step(session=device.session(), tokens=each) for each in tokens])
    for result, each in zip(found, tokens, strict=True):
        check(result, Golden(model).run(each))


def test_results_come_in_the_order_of_the_steps() -> None:
    """A pass takes sequences of one row first."""
    model = small_model("bitnet", None, layers=1)
    device, tokens = loaded(model), [tokens_of(model, n, n) for n in (3, 1, 2)]
    steps = [Step(session=device.session(), tokens=each, logits_from=0) for each in tokens]
    for result, each in zip(device.run(steps), tokens, strict=True):
        check(result, Golden(model).run(each))


def test_a_pass_tells_its_own_saturation() -> None:
    """Of the last layer's product, between tokens whose embedding is zero."""
    model = small_model("bitnet", None, layers=1)
    layer, embedding = model.layers[0], model.embedding.copy()
    embedding[2], scale = 0, layer.down_proj.scale
    loud = replace(layer.down_proj, scale=Scale(scale.m, scale.e + 24))
    model = replace(model, embedding=embedding, layers=[replace(layer, down_proj=loud)])
    device = loaded(model)
    for token, saturated in ((2, False), (1, True), (2, False)):
        golden = Golden(model)
        golden.run([token])
        assert golden.decoder.saturation.seen is saturated
        (found,) = device.run([Step(session=device.session(), tokens=[token])])
        assert found.saturated is saturated


@pytest.mark.parametrize("kv", [8, 4])
def test_a_sequence_moves_between_devices(kv: int) -> None:
    """From golden to the GPU and back, by bytes, in mid-sentence; and to a fork."""
    model = small_model("llama", "W4A8", kv, layers=1)
    tokens = tokens_of(model, 9)
    expected = Golden(model)
    logits, scale = expected.run(tokens)
    golden, device = Golden(model), loaded(model)
    golden.run(tokens[:3])
    session = device.session()
    session.restore(SequenceKv.from_bytes(golden.export().to_bytes()))
    (found,) = device.run([Step(session=session, tokens=tokens[3:5])])
    check(found, (logits[3:5], scale[3:5]))
    exported = SequenceKv.from_bytes(session.export().to_bytes())
    golden.restore(exported)
    back = golden.run(tokens[5:])
    np.testing.assert_array_equal(back[0], logits[5:])
    assert same(golden.export(), expected.export())
    other = session.fork(4)
    (found,) = device.run([Step(session=other, tokens=tokens[4:7], logits_from=2)])
    check(found, (logits[6:7], scale[6:7]))
    assert (session.length, other.length) == (5, 7)
    assert same(session.export(), exported)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("kv", [8, 4])
def test_a_sequence_moves_to_and_from_the_cpu(kv: int) -> None:
    model = small_model("llama", "W4A8", kv, layers=1)
    tokens = tokens_of(model, 6)
    logits, scale = Golden(model).run(tokens)
    cpu, device = CpuDevice(threads=1), loaded(model)
    cpu.load(model)
    there, here = cpu.session(), device.session()
    cpu.run([Step(session=there, tokens=tokens[:3], logits_from=3)])
    here.restore(there.export())
    (found,) = device.run([Step(session=here, tokens=tokens[3:5])])
    check(found, (logits[3:5], scale[3:5]))
    there.restore(here.export())
    (found,) = cpu.run([Step(session=there, tokens=tokens[5:])])
    check(found, (logits[5:], scale[5:]))
    cpu.close()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "format", "kv"), [("qwen3", "W3A16", 4), ("bitnet", None, 8)])
def test_a_sequence_moves_at_every_position(variant: str, format: str | None, kv: int) -> None:
    model = small_model(variant, format, kv)
    device, tokens = loaded(model), tokens_of(model, 12)
    logits, scale = Golden(model).run(tokens)
    for position in range(1, 12):
        golden, session = Golden(model), device.session()
        golden.run(tokens[:position])
        session.restore(golden.export())
        (found,) = device.run([Step(session=session, tokens=tokens[position : position + 1])])
        check(found, (logits[position : position + 1], scale[position : position + 1]))
        golden.restore(session.export())
        assert golden.length == position + 1
        if position < 11:
            rest = golden.run(tokens[position + 1 :])
            np.testing.assert_array_equal(rest[0], logits[position + 1 :])


def test_layers_can_be_run_in_ranges() -> None:
    """The first layer there, the second one here, and the other way round."""
    model = small_model("llama", "W4A8", 4)
    tokens = tokens_of(model, 4)
    expected = Golden(model)
    first = expected.layers(expected.decoder.embed(tokens), range(1))
    logits, scale = expected.head(expected.layers(first, range(1, 2)))
    device = loaded(model)
    session = device.session()
    (found,) = device.run([Step(session=session, tokens=tokens, layers=range(1))])
    assert found.residual is not None and found.residual.dtype == np.int32
    np.testing.assert_array_equal(found.residual, first)
    assert found.logits.shape == (0, model.vocab_size)
    with pytest.raises(LutraError, match=r"^layers 0\.\.1 of the session are filled unequally far"):
        device.run([Step(session=session, tokens=tokens)])
    kv = session.export(range(1))
    np.testing.assert_array_equal(kv.layers[0].keys, expected.caches[0].first(4).keys)
    residual = first.astype(np.int32)
    step = Step(
        session=session, tokens=tokens, logits_from=2, layers=range(1, 2), residual=residual
    )
    (found,) = device.run([step])
    check(found, (logits, scale), 2)
    expected.length = 4
    (found,) = device.run([Step(session=session, tokens=tokens[:1])])
    check(found, expected.run(tokens[:1]))


def test_matrices_of_different_bits_and_groups() -> None:
    model = small_model("llama", "W4A8", layers=1)
    layer = model.layers[0]

    def other(linear: PackedLinear, bits: int, group: int) -> PackedLinear:
        rng = np.random.default_rng(bits)
        n, k = linear.weights.codes.shape
        weights = GroupedWeights(
            codes=rng.integers(0, 1 << bits, (n, k), np.uint8),
            scale=rng.integers(1, 60, (n, k // group)),
            zero=np.full((n, k // group), (1 << bits) - 1),
            bits=bits,
            group=group,
        )
        return PackedLinear(weights, linear.scale, linear.shift)

    layer = replace(layer, k_proj=other(layer.k_proj, 2, 32), up_proj=other(layer.up_proj, 3, 16))
    model = replace(model, layers=[layer])
    device = loaded(model)
    session, golden, tokens = device.session(), Golden(model), tokens_of(model, 6)
    for part in (tokens[:5], tokens[5:]):
        (found,) = device.run([Step(session=session, tokens=part)])
        check(found, golden.run(part))


def test_sessions_take_pages_as_they_grow() -> None:
    """Of 32 positions here; a fork shares them until it writes."""
    model = small_model("bitnet", None, layers=1)
    needed = 2 * 32 * model.n_kv_heads * (32 + 4)
    device, tokens = loaded(model, memory_limit=4 * needed - 1), tokens_of(model, 40)
    golden, first, second = Golden(model), device.session(), device.session()
    expected = golden.run(tokens)
    device.run([Step(session=first, tokens=tokens[:33], logits_from=33)])
    fork = first.fork(33)
    assert len(set(first.table.pages) | set(fork.table.pages)) == 2
    (found,) = device.run([Step(session=fork, tokens=tokens[33:])])
    check(found, expected, 33)
    assert first.table.pages[0] == fork.table.pages[0]
    assert first.table.pages[1] != fork.table.pages[1]
    message = f"^no memory for 32 more positions on device cuda: {needed:,} bytes needed, 0 free"
    with pytest.raises(LutraError, match=message):
        device.run([Step(session=second, tokens=[1])])
    with pytest.raises(LutraError, match=r"^no memory for another session on device cuda: "):
        device.session()
    del fork
    gc.collect()
    (found,) = device.run([Step(session=first, tokens=tokens[33:])])
    check(found, expected, 33)
    second.reserve(32)
    with pytest.raises(LutraError, match=message):
        second.reserve(33)


def test_who_was_forked_writes_a_copy_too() -> None:
    model = small_model("bitnet", None, layers=1)
    device, golden = loaded(model), Golden(model)
    text, other = tokens_of(model, PAGE + 3), tokens_of(model, PAGE + 2, 1)
    golden.run(text)
    whole, mixed = golden.export(), Golden(model)
    session = device.session()
    device.run([Step(session=session, tokens=text, logits_from=len(text))])
    fork = session.fork()
    session.truncate(PAGE + 1)
    expected = mixed.run([*text[: PAGE + 1], other[0]])
    (found,) = device.run([Step(session=session, tokens=other[:1])])
    check(found, expected, PAGE + 1)
    assert same(session.export(), mixed.export())
    assert same(fork.export(), whole)
    fork.restore(session.export())
    third = fork.fork(5)
    golden.length = 0
    golden.run(other)
    session.restore(golden.export())
    assert same(session.export(), golden.export())
    assert same(fork.export(), mixed.export())
    third.restore(golden.export())
    assert same(fork.export(), mixed.export())
    assert device._pool.n_held == 6  # two each


def test_requests_that_outgrow_memory() -> None:
    """Of three pages, where two requests end with two each: one gives way, with the same tokens."""
    model = small_model("bitnet", None, layers=1)
    device = loaded(model, memory_limit=3 * 2 * PAGE * model.n_kv_heads * (32 + 4))
    batch = Batch(LoadedModel(model, device, None, 0))
    clients, prompts = [Client(4), Client(5)], [tokens_of(model, PAGE - 2, i) for i in range(2)]
    requests = [client.request(each) for client, each in zip(clients, prompts, strict=True)]
    for request in requests:
        batch.add(request)
    batch.step()
    assert (batch.n_running, device._pool.n_held) == (2, 2)
    finish(batch)
    for client, each in zip(clients, prompts, strict=True):
        assert client.ends == [None]
        assert client.tokens == alone(model, each, client.most, GREEDY)
    assert device._pool.n_held == 0
    assert sum(request.stats.computed_tokens for request in requests) > 2 * (PAGE - 2)


def test_a_gpu_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory ends before that which was free when the model was loaded."""
    model = small_model("bitnet", None, layers=1)
    device, tokens = loaded(model), tokens_of(model, 3)
    golden, session = Golden(model), device.session()

    def failing(*_arguments: object, **_options: object) -> KvCache:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(KvCache, "new", failing)
        message = (
            "^device cuda: the GPU has too little memory for more keys and values: close a session$"
        )
        with pytest.raises(NoRoom, match=message):
            device.run([Step(session=session, tokens=tokens)])
    assert (session.length, device._pool.n_held) == (0, 0)
    (found,) = device.run([Step(session=session, tokens=tokens)])
    check(found, golden.run(tokens))


@dataclass
class CapturedStep:
    """A CUDA graph under the interpreter: it goes on with the caches that it was captured with."""

    pool: KvPool
    launch: Callable[[], None] = lambda: None
    n_replays: int = 0

    def __post_init__(self) -> None:
        self.caches = list(self.pool.caches)

    def replay(self) -> None:
        self.n_replays += 1
        there, self.pool.caches = self.pool.caches, self.caches
        self.launch()
        self.pool.caches = there


def test_captured_steps_when_caches_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs hold the addresses of the caches, whose memory is somebody else's then."""
    model = small_model("bitnet", None, layers=1)
    device, golden, graphs = loaded(model), Golden(model), list[CapturedStep]()
    session, tokens = device.session(), iter(tokens_of(model, 20))
    pool, launch = device._runner.pool, device._runner._launch
    last: list[Callable[[], None]] = []

    def noting(*arguments: Any) -> None:
        last[:] = [partial(launch, *arguments)]
        launch(*arguments)

    def graph() -> CapturedStep:
        graphs.append(CapturedStep(pool))
        return graphs[-1]

    @contextmanager
    def capture(graph: CapturedStep) -> Generator[None]:
        yield
        [graph.launch] = last

    if runner.INTERPRETED:
        cuda = SimpleNamespace(synchronize=lambda: None, CUDAGraph=graph, graph=capture)
        monkeypatch.setattr(runner, "import_module", {"torch": SimpleNamespace(cuda=cuda)}.get)
        monkeypatch.setattr(runner, "INTERPRETED", False)
        monkeypatch.setattr(device._runner, "_launch", noting)

    def go(*counts: int) -> None:
        for n in counts:
            part = [next(tokens) for _ in range(n)]
            (found,) = device.run([Step(session=session, tokens=part)])
            check(found, golden.run(part))

    go(1, 1, 1)
    moved, before = pool.generation, list(pool.caches)
    other = device.session()
    other.reserve(model.context)
    assert pool.generation == moved + 1
    for cache in before:
        for array in cache.arrays:
            array.zero_()
    go(2, 1, 1)
    buffers = device._runner._buffers[1, 1]
    assert list(buffers.graphs) == [(False, moved + 1)]
    assert not graphs or [each.n_replays for each in graphs] == [2, 1]
    go(2, 1, 1)  # from 7 on split
    assert list(buffers.graphs) == [(False, moved + 1), (True, moved + 1)]


def test_what_interrupts_a_run_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama", "W4A8", layers=1)
    device = loaded(model)
    session, golden, tokens = device.session(), Golden(model), tokens_of(model, 4)
    (found,) = device.run([Step(session=session, tokens=tokens[:3])])
    check(found, golden.run(tokens[:3]))
    whole = runner.norm_quantize
    refused = (
        "^device cuda: the GPU has too little memory for a pass of 1 rows: close a session or use "
        "a smaller model$"
    )
    for error, raised, message in (
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (MemoryError(), LutraError, refused),
    ):
        calls: list[int] = []

        def failing(*arguments: object, calls=calls, error=error, **options: object) -> None:
            calls.append(0)
            if len(calls) == 3:
                raise error
            whole(*arguments, **options)

        monkeypatch.setattr(runner, "norm_quantize", failing)
        with pytest.raises(raised, match=message):
            device.run([Step(session=session, tokens=[7])])
        assert len(calls) == 3 and session.length == 3
    monkeypatch.setattr(runner, "norm_quantize", whole)
    (found,) = device.run([Step(session=session, tokens=tokens[3:])])
    check(found, golden.run(tokens[3:]))


def test_sequences_take_turns() -> None:
    """As many rows in each pass, of another sequence."""
    model = small_model("bitnet", None, layers=1)
    device, texts = loaded(model), [tokens_of(model, 2, i) for i in range(2)]
    sessions = [device.session() for _ in texts]
    for at in range(2):
        for session, text in zip(sessions, texts, strict=True):
            (found,) = device.run([Step(session=session, tokens=text[at : at + 1])])
            check(found, Golden(model).run(text[: at + 1]), at)


def test_threads_take_turns() -> None:
    model = small_model("bitnet", None, layers=1)
    device = loaded(model)
    found: dict[int, StepResult] = {}

    def work(i: int) -> None:
        session = device.session()
        for token in tokens_of(model, 2, i):
            (found[i],) = device.run([Step(session=session, tokens=[token])])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        check(found[i], Golden(model).run(tokens_of(model, 2, i)), 1)


def test_refusals() -> None:
    model = small_model("bitnet", None, layers=1)
    device = CudaDevice()
    with pytest.raises(LutraError, match=r"^no model is loaded: call load\(model\) first$"):
        device.session()
    with pytest.raises(
        LutraError, match=r"^device cuda caches keys and values with the same number"
    ):
        device.load(replace(model, value_bits=4))
    with pytest.raises(LutraError, match=r"^device cuda: groups of 8 weights in o_proj are not"):
        device.load(small_model("qwen3", "W2A8", layers=1, head_dim=24))
    device.load(model)
    session = device.session()
    for tokens, logits_from, message in (
        ([], 0, "a step has no tokens: give at least one"),
        ([1] * 65, 0, "positions 0..64 exceed the context of 64: shorten the prompt"),
        ([1], 2, "logits_from must be in 0..1, not 2"),
        ([1, 112], 0, "token id 112 is outside the vocabulary of 112"),
    ):
        with pytest.raises(LutraError, match=f"^{re.escape(message)}"):
            device.run([Step(session=session, tokens=tokens, logits_from=logits_from)])
    device.process.pid = 0
    with pytest.raises(LutraError, match="was loaded before this process was forked: load the mo"):
        device.run([Step(session=session, tokens=[1])])
    device.load(model)
    with pytest.raises(LutraError, match=r"^the session's model is no longer loaded"):
        device.run([Step(session=session, tokens=[1])])
    kept, pool = device.session(), device._runner.pool
    assert pool.caches
    device.close()
    assert not pool.caches
    kept.close()
    with pytest.raises(LutraError, match=r"^no model is loaded: call load\(model\) first$"):
        device.session()


def test_auto_takes_it_in_the_interpreter() -> None:
    device, reasons = choose_device("auto")
    assert device.name == "cuda" and not reasons
    assert describe_gpu() == "Triton's interpreter, without a GPU"


def test_auto_goes_on_to_it_from_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that somebody else has; then the card itself, with the same logits."""
    model = small_model("bitnet", None, layers=1)
    config = configure(model, "u55c")
    card = EmulatedCard(find_profile("u55c"), kernels=InterpretedKernel)
    module = card.module()
    module.__spec__ = ModuleSpec("pyxrt", None)
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    (tmp_path / "bitstreams").mkdir()
    shutil.copy(card.image(config), tmp_path / "bitstreams")
    expected, tokens = Golden(model).run([1, 2, 3]), [1, 2, 3]
    for busy, name in ((True, "cuda"), (False, "xrt")):
        card.faults.busy = busy
        found = AutoDevices(model)
        device = found.load(model)
        assert device.name == name and len(found.reasons) == busy
        assert all(each.startswith("device xrt: ") for each in found.reasons)
        (result,) = device.run([Step(session=device.session(), tokens=tokens)])
        np.testing.assert_array_equal(result.logits, expected[0])
        np.testing.assert_array_equal(result.scale, expected[1])
        device.close()
    card.close()


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_rows_are_divided_with_another_device(variant: str) -> None:
    """Of a prompt, of tokens beside a prompt, and of two at once; the other one has the rest."""
    model = small_model(variant, "W4A8", 8, 2, head_dim=32)
    route = by_rows((RowShare(0, 1, 0), RowShare(1, 1, 1)), 2)
    for devices in ([CudaDevice(), CpuDevice(1)], [CpuDevice(1), CudaDevice()]):
        with PlannedDevice(devices, fixed(Plan(route, route))) as device:
            device.load(model)
            sessions, goldens = [device.session(), device.session()], [Golden(model), Golden(model)]
            for counts in ((6, 0), (1, 5), (3, 1), (1, 1)):
                steps, expected = list[Step](), list[tuple[np.ndarray, np.ndarray]]()
                for i, n in enumerate(counts):
                    if n:
                        done = sessions[i].length
                        ids = tokens_of(model, 20, i)[done : done + n]
                        steps.append(Step(session=sessions[i], tokens=ids, logits_from=n // 2))
                        expected.append(goldens[i].run(ids))
                for step, result, each in zip(steps, device.run(steps), expected, strict=True):
                    check(result, each, step.logits_from)
            for session, golden in zip(sessions, goldens, strict=True):
                assert same(session.export(), golden.export())
            assert not device.notes


@pytest.fixture(scope="module")
def split_model() -> PackedModel:
    return small_model("llama", "W4A8")


def both(model: PackedModel) -> tuple[list[Device], list[int], StepResult]:
    """The GPU and the CPU, tokens, and golden's results of them."""
    devices: list[Device] = [CudaDevice(), CpuDevice(1)]
    for device in devices:
        device.load(model)
    tokens = tokens_of(model, 5)
    with GoldenDevice() as device:
        device.load(model)
        [expected] = device.run([Step(session=device.session(), tokens=tokens)])
    return devices, tokens, expected


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("pipelined prompts", 0),
        pytest.param("pipelined prompts", 1, marks=pytest.mark.slow),
        *(
            pytest.param(kind, place, marks=pytest.mark.slow)
            for kind in KINDS
            if kind != "pipelined prompts"
            for place in (0, 1)
        ),
    ],
)
def test_every_plan_gives_the_same_bits(kind: str, place: int, split_model: PackedModel) -> None:
    """With the GPU before the CPU, and behind it."""
    devices, tokens, expected = both(split_model)
    plan = plans(2)[kind]
    with PlannedDevice(devices[:: 1 - 2 * place], fixed(plan)) as device:
        device.load(split_model)
        session = device.session()
        results = device.run([Step(session=session, tokens=tokens[:3])])
        for token in tokens[3:]:
            results += device.run([Step(session=session, tokens=[token])])
        assert not device.notes
    found = np.concatenate([each.logits for each in results])
    np.testing.assert_array_equal(found, expected.logits)


@pytest.mark.slow
def test_hand_over_at_every_token(split_model: PackedModel) -> None:
    devices, tokens, expected = both(split_model)
    hand_over_at_every_token(split_model, devices, tokens, expected)
    for device in devices:
        device.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_device_that_dies_at_any_call(kind: str, victim: int, split_model: PackedModel) -> None:
    devices, tokens, expected = both(split_model)
    n = die_at_any_call(split_model, plans(2)[kind], devices, victim, tokens, expected)
    for device in devices:
        device.close()
    assert n > 2 or (kind, victim) == ("whole", 1)
