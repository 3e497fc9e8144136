"""Machines for a cluster, each *modelled* for the shape of a model: boards by the cycle formulas of
the configuration that there is for them, GPUs by the bytes of the packed model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lutra.compile.configure import configure
from lutra.devices.estimate import LAYER_S, token_bytes
from lutra.models import RANDOM
from lutra.models.random import RANDOM_SHAPES
from lutra.packed.random import random_packed
from lutra.serving.batch import MOST_AT_ONCE
from lutra.serving.plans.measure import kv_bytes_of
from lutra.serving.plans.modelled import model_accelerator
from lutra.serving.plans.profile import DeviceProfile, Table
from lutra_flows.cluster.machine import Kv, Machine
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import linear_shapes
from lutra_golden.timing.boards import BOARD_PROFILES

__all__ = ["GPUS", "MACHINES", "Gpu", "Shaped", "make_machine"]

Progress = Callable[[str, float], None]
_CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_POSITIONS = (0, 512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU: bytes that its memory delivers in a second, products of 8-bit integers that it adds in
    a second, and its memory."""

    name: str
    bytes_per_s: float
    macs_per_s: float
    memory_bytes: float


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # 4.8 TB/s, of which 4.3 can be had, and half of the 1,979 INT8 TOPS of its data sheet
        Gpu(name="h200", bytes_per_s=4.3e12, macs_per_s=495e12, memory_bytes=141e9),
        # 360 GB/s, as much of it, and half of 102 INT8 TOPS
        Gpu(name="rtx3060", bytes_per_s=322e9, macs_per_s=25.5e12, memory_bytes=12e9),
    )
}
"""GPUs by name; none of them was measured with Lutra's kernels."""
MACHINES = (*BOARD_PROFILES, *GPUS)
"""Names of machines."""


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """A packed model of a shape with random weights, all of whose layers are one.

    ``single`` has this one layer alone, for what looks at every layer.
    """

    model: PackedModel
    single: PackedModel

    @classmethod
    def of(cls, shape: str, progress: Progress | None = None) -> "Shaped":
        """The model of a name of :data:`~lutra.models.random.RANDOM_SHAPES`."""
        if shape not in RANDOM_SHAPES:
            raise LutraError(f"a shape must be one of {', '.join(RANDOM_SHAPES)}, not {shape!r}")
        n_layers = RANDOM_SHAPES[shape]["num_hidden_layers"]
        assert isinstance(n_layers, int)
        single = random_packed(RANDOM + shape, n_layers=1, progress=progress)
        return cls(model=replace(single, layers=[single.layers[0]] * n_layers), single=single)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on a device, the embedding included."""
        return token_bytes(self.model) + self.model.embedding.nbytes

    @property
    def kv(self) -> Kv:
        """Its keys and values."""
        n_bytes = kv_bytes_of(self.model, 1, len(self.model.layers))
        return Kv(token_bytes=n_bytes, context=self.model.context)


def make_machine(name: str, shaped: Shaped, *, faster: float = 1.0) -> Machine:
    """The machine of a name, with a model; its passes take 1 / ``faster`` of their time."""
    if name not in MACHINES:
        raise LutraError(
            f"a device of a cluster must be one of {', '.join(MACHINES)}, not {name!r}"
        )
    kv, gpu = shaped.kv, GPUS.get(name)
    label = name if faster == 1 else f"{name} x {faster:g}"
    if gpu is not None:
        profile = _gpu_profile(gpu, shaped.model)
        memory, whole_context, most = gpu.memory_bytes, False, MOST_AT_ONCE
    else:
        board = BOARD_PROFILES[name]
        config = configure(shaped.single, board.config)
        profile = model_accelerator(shaped.model, config, board, label, "modelled")
        memory, whole_context = float(board.buffer_bytes), True
        most = min(int(memory // (kv.token_bytes * kv.context)) + 1, MOST_AT_ONCE)
    return Machine(
        name=label,
        profile=profile.scaled(1 / faster),
        kv=kv,
        kv_bytes=memory - shaped.weight_bytes,
        whole_context=whole_context,
        most=most,
    )


def _gpu_profile(gpu: Gpu, model: PackedModel) -> DeviceProfile:
    """Times as long as the slower of memory and arithmetic takes, of matrices and of attention by
    themselves, and the launches of every layer: a lower bound."""
    n_layers = len(model.layers)
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    shapes = linear_shapes(model.hidden_size, model.intermediate_size, q, kv).values()
    layer_macs, head_macs = sum(n * k for n, k in shapes), model.vocab_size * model.hidden_size
    head_bytes = model.head.nbytes
    layer_bytes = (token_bytes(model) - head_bytes) / n_layers
    kv_bytes = kv_bytes_of(model, 1, 1)

    def longest(n_bytes: float, macs: float) -> float:
        return max(n_bytes / gpu.bytes_per_s, macs / gpu.macs_per_s)

    def layer(tokens: int, position: int, sessions: int = 1) -> float:
        attended = position + (tokens / sessions + 1) / 2
        read = sessions * (position + tokens / sessions) * kv_bytes
        products = longest(layer_bytes, tokens * layer_macs)
        return products + longest(read, tokens * attended * 2 * q) + LAYER_S

    def head(logits: int) -> float:
        return longest(head_bytes, logits * head_macs)

    def table(sizes: Sequence[int], seconds: Callable[[int, int], float]) -> Table:
        return Table(
            tokens=tuple(sizes),
            positions=_POSITIONS,
            seconds=tuple(tuple(seconds(n, p) for p in _POSITIONS) for n in sizes),
        )

    return DeviceProfile(
        device=gpu.name,
        kind="modelled",
        fingerprint="modelled",
        n_layers=n_layers,
        pass_tokens=_CHUNKS[-1],
        chunk=table(_CHUNKS, lambda n, p: n_layers * layer(n, p) + head(1)),
        batch=table(
            [n for n in _CHUNKS if n <= MOST_AT_ONCE],
            lambda n, p: n_layers * layer(n, p, n) + head(n),
        ),
        layer=table(_CHUNKS, layer),
    )
