"""The training loop: seeded, counted in steps, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lutra_flows.train.decoder import CausalLM, DecoderParams
from lutra_flows.train.evaluate import cross_entropy
from lutra_flows.train.llama import LlamaForCausalLM, LlamaParams
from lutra_flows.train.model import BitNetForCausalLM, BitNetParams

__all__ = [
    "MODELS",
    "TALES",
    "TALES_LLAMA",
    "TrainParams",
    "TrainResult",
    "build",
    "learning_rate",
    "train",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainParams:
    """Everything that decides the weights, besides the text."""

    model: DecoderParams = field(default_factory=BitNetParams)
    n_steps: int = 4400
    batch_size: int = 16
    warmup_steps: int = 200
    peak_learning_rate: float = 3e-3
    stage_share: float = 44 / 62
    weight_decay: float = 0.1
    dropout: float = 0.1
    max_grad_norm: float = 1.0
    bfloat16: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "warmup_steps", "peak_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def stage_step(self) -> int:
        """Step at which the second, steeper stage of the decay begins."""
        return self.n_steps * 5 // 11

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.model.max_position_embeddings


TALES = TrainParams()
TALES_LLAMA = TrainParams(model=LlamaParams(), n_steps=2600)
MODELS = {"tales": TALES, "tales-llama": TALES_LLAMA}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The model, the loss of each step of this call, and the seconds spent in all calls."""

    model: CausalLM
    losses: list[float]
    seconds: float


def learning_rate(params: TrainParams, step: int) -> float:
    """Linear warm-up, then a decay in two stages that reaches zero one step after the last.

    The first stage falls from the peak to ``stage_share`` of it at ``stage_step``, the second, the
    steeper one, from there to zero.
    """
    warmup = (step + 1) / params.warmup_steps
    first = max(1, params.stage_step - params.warmup_steps)
    slow = 1 - (1 - params.stage_share) * (step - params.warmup_steps) / first
    fast = params.stage_share * (params.n_steps - step) / max(1, params.n_steps - params.stage_step)
    return params.peak_learning_rate * min(1.0, warmup, slow if step < params.stage_step else fast)


def build(params: DecoderParams, *, dtype: torch.dtype, dropout: float = 0.0) -> CausalLM:
    """The model of these sizes, with random weights from torch's generator."""
    if isinstance(params, LlamaParams):
        return LlamaForCausalLM(params, dtype=dtype, dropout=dropout)
    assert isinstance(params, BitNetParams)
    return BitNetForCausalLM(params, dtype=dtype, dropout=dropout)


def _optimizer(model: CausalLM, params: TrainParams) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


class _Batches:
    """Batch of any step, from windows that are drawn anew for every epoch."""

    def __init__(self, windows: Callable[[int], NDArray[np.int64]], batch_size: int) -> None:
        self._draw, self._batch_size = windows, batch_size
        self._epochs: dict[int, NDArray[np.int64]] = {}
        self._per_epoch = len(self._epoch(0)) // batch_size
        if self._per_epoch < 1:
            raise ValueError(f"text is too short for one batch of {batch_size} windows")

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            self._epochs = {epoch: self._draw(epoch)}
        return self._epochs[epoch]

    def __getitem__(self, step: int) -> Tensor:
        # The phase of the cut differs between epochs, so an epoch may be one window short: wrap.
        epoch, i = divmod(step, self._per_epoch)
        rows = np.arange(i * self._batch_size, (i + 1) * self._batch_size)
        return torch.from_numpy(self._epoch(epoch).take(rows, axis=0, mode="wrap"))


def train(
    params: TrainParams,
    windows: Callable[[int], NDArray[np.int64]],
    *,
    valid: NDArray[np.int64] | None = None,
    run: Path | None = None,
    compile_model: bool = False,
    eval_every: int = 250,
    checkpoint_every: int = 250,
) -> TrainResult:
    """Train a model.

    Parameters
    ----------
    windows : gives the windows of an epoch, ``[n_windows, max_position_embeddings + 1]``.
    valid : windows to report the cross-entropy of, every ``eval_every`` steps.
    run : folder for ``checkpoint.pt``; training resumes from it if it is there.
    compile_model : use ``torch.compile``; faster, needs a C++ compiler, other rounding.
    """
    torch.manual_seed(params.seed)
    dtype = torch.bfloat16 if params.bfloat16 else torch.float32
    model = build(params.model, dtype=dtype, dropout=params.dropout)
    optimizer = _optimizer(model, params)
    first = 0
    seconds_before = 0.0
    path = run / "checkpoint.pt" if run else None
    if path and path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds_before = state["step"], state["seconds"]
        _log.info("resumed at step %d", first)
    forward = torch.compile(model) if compile_model else model
    batches = _Batches(windows, params.batch_size)
    losses: list[float] = []
    seconds = 0.0
    start = time.monotonic()
    for step in range(first, params.n_steps):
        # Dropout follows from the step alone: a resumed run draws what an unbroken one does.
        torch.manual_seed(params.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step)
        batch = batches[step]
        logits = forward(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), params.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())

        done = step + 1
        seconds = time.monotonic() - start
        if done % 50 == 0 or done == params.n_steps:
            rate = (done - first) * params.tokens_per_step / seconds
            left = (params.n_steps - done) * seconds / (done - first)
            _log.info(
                "step %d/%d loss %.4f %.0f tokens/s, %.0f min left",
                done, params.n_steps, float(np.mean(losses[-50:])), rate, left / 60,
            )  # fmt: skip
        if valid is not None and (done % eval_every == 0 or done == params.n_steps):
            _log.info("step %d valid ce %.4f", done, cross_entropy(model, valid).mean())
        if path and (done % checkpoint_every == 0 or done == params.n_steps):
            _save(path, model, optimizer, done, seconds_before + seconds)
    return TrainResult(model=model, losses=losses, seconds=seconds_before + seconds)


def _save(
    path: Path,
    model: CausalLM,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
