"""The CPU as a device: packed models as they are stored, in C."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from lutra.devices.base import Chunk, PassResult, Step, StepResult
from lutra.devices.cpu.binding import CpuModel, RowTable
from lutra.devices.cpu.cache import PAGE, CacheShape, CpuCache, CpuPages
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.interface import CShare
from lutra.devices.cpu.library import library, prepare
from lutra.devices.cpu.meeting import CpuMeeting, share_for
from lutra.devices.paged import PagedDevice, PagedSession
from lutra.devices.shares import Share
from lutra_golden.machine import available_cores
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.packed import PackedModel

__all__ = ["CpuDevice", "CpuSession"]

Progress = Callable[[str, float], None]
_PASS_TOKENS = 512


class CpuSession(PagedSession):
    """A sequence, whose keys and values are the library's."""

    def __init__(self, device: "CpuDevice", cache: CpuCache) -> None:
        super().__init__(device, cache.shape.n_layers, cache)
        self.cache = cache

    def _read(self, layer: int, n: int) -> LayerKv:
        return self.cache.read(layer, n)

    def _write(self, layer: int, kv: LayerKv) -> None:
        self.make_room(kv.length, first=0)
        self.cache.write(layer, kv)


class CpuDevice(PagedDevice[CpuSession]):
    """Runs packed models on the cores of this machine, with the golden model's bits.

    ``threads`` are one per core if left out. The library is compiled when it is first needed,
    unless the package came with it; LutraError says what is missing.
    """

    name = "cpu"
    capabilities = EVERY_PART
    page = PAGE
    pass_tokens = _PASS_TOKENS
    meeting = CpuMeeting

    def __init__(
        self,
        threads: int | None = None,
        progress: Progress | None = None,
        *,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(memory_limit=memory_limit)
        if progress:
            prepare(partial(progress, "compiling the CPU's kernels"))
        library()
        self.threads = available_cores() if threads is None else threads
        self._loaded: CpuModel | None = None
        self._pages: CpuPages | None = None
        self._caches: weakref.WeakSet[CpuCache] = weakref.WeakSet()

    @property
    def token_bytes(self) -> int:
        """Bytes of the model's matrices that a token reads which is decoded on its own."""
        assert self._loaded is not None
        return self._loaded.token_bytes

    def facts(self) -> Mapping[str, str | int]:
        """Threads that share the work."""
        return {"threads": self.threads}

    def _load(self, model: PackedModel) -> None:
        check_numbers(model)
        few, many = choose_targets(self.threads, model.a_groups)
        self._loaded = CpuModel(
            model, threads=self.threads, few=few, many=many, rows=self.pass_tokens
        )
        self._pages = CpuPages(self._loaded.shape)

    def _unload(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        for cache in list(self._caches):
            cache.close()
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    @property
    def _pool(self) -> CpuPages:
        assert self._pages is not None, "a model is loaded"
        return self._pages

    def _session(self, model: PackedModel) -> CpuSession:
        assert self._loaded is not None
        cache = CpuCache(self._loaded.shape, self._pool)
        self._caches.add(cache)
        return CpuSession(self, cache)

    def _session_bytes(self, model: PackedModel) -> int:
        return CacheShape.of(model).n_bytes

    def run_share(self, steps: Sequence[Step], share: Share) -> list[StepResult]:
        """Run a share of steps; see :class:`~lutra.devices.shares.SharingDevice`."""
        with share_for(share) as own:
            run_pass = partial(self._pass, share=own)
            return self._run(steps, run_pass, share.meeting.rows, share.rows.vocabulary)

    def _pass(self, chunks: Sequence[Chunk], share: CShare | None = None) -> PassResult:
        assert self._loaded is not None
        rows, first = RowTable.empty(sum(len(chunk.tokens) for chunk in chunks)), 0
        for chunk in chunks:
            assert isinstance(chunk.session, CpuSession)
            at = slice(first, first + len(chunk.tokens))
            # with a residual stream they only count
            known = chunk.residual is None
            tokens = np.array(chunk.tokens if known else [0] * len(chunk.tokens), np.int32)
            rows.set(at, chunk.session.cache, chunk.position, tokens, chunk.logits_from)
            first = at.stop
        streams = [chunk.residual for chunk in chunks if chunk.residual is not None]
        result = self._loaded.run(
            rows, chunks[0].layers, np.concatenate(streams) if streams else None, share
        )
        if result.residual is not None:
            return PassResult(residual=result.residual, saturated=result.saturated)
        return PassResult(
            logits=result.logits,
            scale=result.scale * self.model.head_scale,
            argmax=result.argmax,
            saturated=result.saturated,
        )
