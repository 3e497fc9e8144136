"""A GPU as a device: packed models in Triton kernels."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from lutra.devices.base import Chunk, PassResult, Step, StepResult, available_memory
from lutra.devices.paged import PagedDevice, PagedSession
from lutra.devices.pages import NoRoom, PageCopy, PagePool, PageTable
from lutra.devices.shares import Meeting, Share, first_best
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import Party
from lutra_kernels import interpreted, interpreter_missing, missing

if TYPE_CHECKING:
    from lutra_kernels.pool import KvPool
    from lutra_kernels.runner import Runner

__all__ = ["CudaDevice", "CudaSession", "describe_gpu"]

Progress = Callable[[str, float], None]


class CudaPages(PagePool):
    """Pages of ``pool``."""

    def __init__(self, pool: "KvPool") -> None:
        super().__init__("cuda", pool.page, pool.page_bytes)
        self.kv = pool

    def _grow(self, n_used: int) -> None:
        with _refusing(NoRoom):
            self.kv.grow(n_used, self.n_pages)


class CudaTable(PageTable):
    """Pages of a sequence on the GPU."""

    def __init__(self, pages: CudaPages) -> None:
        super().__init__(pages)
        self.kv = pages.kv

    def _copy_pages(self, copies: Sequence[PageCopy]) -> None:
        for source, target, _ in copies:
            self.kv.copy_page(source, target)


class CudaSession(PagedSession):
    """A sequence on the GPU."""

    def __init__(self, device: "CudaDevice", table: CudaTable, n_layers: int) -> None:
        super().__init__(device, n_layers, table)
        self._kv = table.kv

    def _read(self, layer: int, n: int) -> LayerKv:
        return self._kv.read(layer, self.table.pages, n)

    def _write(self, layer: int, kv: LayerKv) -> None:
        self.make_room(kv.length, first=0)
        self._kv.write(layer, self.table.pages, kv)


class CudaDevice(PagedDevice[CudaSession]):
    """Runs packed models on the first CUDA device, with the golden model's bits.

    With ``TRITON_INTERPRET=1`` kernels run in Triton's interpreter, slowly and without a GPU.
    """

    name = "cuda"
    capabilities = EVERY_PART
    page = 128
    meeting = Meeting

    def __init__(
        self, progress: Progress | None = None, *, memory_limit: int | None = None
    ) -> None:
        reason = interpreter_missing() if interpreted() else missing()
        if reason is not None:
            raise LutraError(f"device cuda cannot be used, {reason}")
        super().__init__(memory_limit=memory_limit)
        self._progress = progress
        self._loaded: Runner | None = None
        self._pages: CudaPages | None = None

    @property
    def _runner(self) -> "Runner":
        assert self._loaded is not None, "a model is loaded"
        return self._loaded

    def _load(self, model: PackedModel) -> None:
        from lutra_kernels.model import upload_model
        from lutra_kernels.runner import Runner

        check_numbers(model)
        common_kv_bits(model, f"device {self.name}")
        with _refusing():
            uploaded = upload_model(model, self._report)
            self._loaded = Runner(uploaded, pass_tokens=self.pass_tokens, page=self.page)
        self._pages = CudaPages(self._loaded.pool)

    def _report(self, share: float) -> None:
        if self._progress is not None:
            self._progress("loading the GPU", share)

    def _unload(self) -> None:
        if self._loaded is not None:
            # sessions that somebody still holds keep no memory
            self._loaded.pool.release()
            self._loaded = self._pages = None

    @property
    def _pool(self) -> CudaPages:
        assert self._pages is not None, "a model is loaded"
        return self._pages

    def _session(self, model: PackedModel) -> CudaSession:
        return CudaSession(self, CudaTable(self._pool), len(model.layers))

    def _session_bytes(self, model: PackedModel) -> int:
        return self._runner.pool.n_pages * self._pool.page_bytes

    def _memory(self) -> int:
        from lutra_kernels.arrays import free_bytes

        free = available_memory() if interpreted() else free_bytes()
        return max(0, free - self._runner.pass_bytes)

    def run_share(self, steps: Sequence[Step], share: Share) -> list[StepResult]:
        """Run a share of steps; see :class:`~lutra.devices.shares.SharingDevice`. What is exchanged
        passes through the host's memory."""
        rows, party = share.rows.vocabulary, Party(share.rows, share.meeting)
        return self._run(steps, partial(self._pass_of, party), share.meeting.rows, rows)

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        return self._pass_of(None, chunks)

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        from lutra_kernels.runner import Part

        parts: list[Part] = []
        for chunk in chunks:
            assert isinstance(chunk.session, CudaSession)
            parts.append(
                Part(
                    pages=chunk.session.table.pages,
                    tokens=chunk.tokens,
                    position=chunk.position,
                    n_logits=len(chunk.tokens) - chunk.logits_from,
                    residual=chunk.residual,
                )
            )
        with _refusing():
            result = self._runner.run(parts, chunks[0].layers, party)
        own = range(self.model.vocab_size) if party is None else party.share.vocabulary
        return PassResult(
            logits=result.logits,
            scale=scale_to_float(result.scale) * self.model.head_scale,
            argmax=first_best(result.logits, own),
            residual=result.residual,
            saturated=result.saturated,
        )


@contextmanager
def _refusing(kind: type[LutraError] = LutraError) -> Generator[None]:
    """Turn what the kernels' package raises of the GPU into an error of this device."""
    from lutra_kernels.errors import GpuUnavailable

    try:
        yield
    except GpuUnavailable as error:
        raise kind(f"device cuda: {error}") from None


def describe_gpu() -> str:
    """Name and memory of the GPU that is used."""
    if interpreted():
        return "Triton's interpreter, without a GPU"
    properties = import_module("torch").cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
