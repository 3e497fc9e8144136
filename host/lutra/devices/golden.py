"""The specification as a device: the integer decoder of the golden model, in NumPy."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from lutra.devices.base import BaseDevice, Chunk, PassResult, Step, StepResult
from lutra.devices.sessions import BaseSession
from lutra.devices.shares import Meeting, Share, first_best
from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import Scale, scale_to_float
from lutra_golden.model.cache import LayerCache, LayerKv
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import Party
from lutra_golden.model.two_stage import MOST_BEST

__all__ = ["GoldenDevice", "GoldenSession"]


class GoldenSession(BaseSession):
    """Keys and values in the canonical form itself."""

    def __init__(self, device: "GoldenDevice", caches: list[LayerCache]) -> None:
        super().__init__(device, len(caches))
        self.caches = caches

    def _read(self, layer: int, n: int) -> LayerKv:
        kv = self.caches[layer].first(n)
        return LayerKv(
            kv.keys.copy(), Scale(*map(np.copy, kv.key_scale)),
            kv.values.copy(), Scale(*map(np.copy, kv.value_scale)),
        )  # fmt: skip

    def _write(self, layer: int, kv: LayerKv) -> None:
        self.caches[layer].restore(kv)

    def _release(self) -> None:
        self.caches = []


class GoldenDevice(BaseDevice[GoldenSession]):
    """Runs packed models in NumPy, exactly as specified: no configuration, nothing to compile."""

    name = "golden"
    capabilities = EVERY_PART
    pass_tokens = 64
    most_best = MOST_BEST
    meeting = Meeting

    def __init__(self, *, memory_limit: int | None = None) -> None:
        super().__init__(memory_limit=memory_limit)
        self._decoder: Decoder | None = None

    def _load(self, model: PackedModel) -> None:
        self._decoder = Decoder(model)

    def _unload(self) -> None:
        self._decoder = None

    def _session(self, model: PackedModel) -> GoldenSession:
        assert self._decoder is not None
        return GoldenSession(self, self._decoder.caches())

    def _session_bytes(self, model: PackedModel) -> int:
        layer = LayerCache.full_bytes(model.n_kv_heads, model.head_dim, model.context)
        return len(model.layers) * layer

    def run_share(self, steps: Sequence[Step], share: Share) -> list[StepResult]:
        """Run a share of steps; see :class:`~lutra.devices.shares.SharingDevice`."""
        rows, party = share.rows.vocabulary, Party(share.rows, share.meeting)
        return self._run(steps, partial(self._pass_of, party), share.meeting.rows, rows)

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        return self._pass_of(None, chunks)

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        decoder = self._decoder
        assert decoder is not None
        decoder.saturation.seen = False
        rows, streams, wanted, first = list[Rows](), list[Int](), list[Int](), 0
        for chunk in chunks:
            assert isinstance(chunk.session, GoldenSession)
            n = len(chunk.tokens)
            rows.append(Rows(chunk.session.caches, slice(first, first + n), chunk.position))
            wanted.append(np.arange(first + chunk.logits_from, first + n))
            streams.append(
                decoder.embed(chunk.tokens)
                if chunk.residual is None
                else chunk.residual.astype(np.int64)
            )
            first += n
        x, layers = np.concatenate(streams), chunks[0].layers
        for i in layers:
            x = decoder.layer(i, x, rows, party)
        if layers.stop < len(self.model.layers):
            return PassResult(residual=x, saturated=decoder.saturation.seen)
        n_best = max(chunk.best for chunk in chunks)
        if n_best:
            found, scale = decoder.best(x[np.concatenate(wanted)], n_best)
            best = _stacked([each.tokens for each in found], n_best)
            return PassResult(
                logits=_stacked([each.logits for each in found], n_best),
                scale=scale_to_float(scale) * self.model.head_scale,
                argmax=best[:, 0],
                saturated=decoder.saturation.seen,
                best=best,
                rescored=np.array([each.rescored for each in found], np.int64),
            )
        own = range(self.model.vocab_size) if party is None else party.share.vocabulary
        logits, scale = decoder.head(x[np.concatenate(wanted)], own)
        return PassResult(
            logits=logits,
            scale=scale_to_float(scale) * self.model.head_scale,
            argmax=first_best(logits, own),
            saturated=decoder.saturation.seen,
        )


def _stacked(rows: Sequence[Int], width: int) -> Int:
    """Rows ``[n, width]``, also if there are none."""
    return np.stack(rows) if rows else np.zeros((0, width), np.int64)
