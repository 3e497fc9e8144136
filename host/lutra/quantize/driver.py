"""A whole model quantised by any method, one layer at a time, and again from where it stopped.

A layer sees the residual stream that the quantised layers before it produce, as they are packed;
so a run that was interrupted goes on with the same numbers as one that was not.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.quantize import DEFAULT_GROUP, check_format, check_groups, quantize_layer, stage_of
from lutra.quantize.awq import awq
from lutra.quantize.budget import CHOICES, BitPlan, Sensitivity, allot, measure
from lutra.quantize.calibration import States, in_float
from lutra.quantize.gptq import gptq
from lutra.quantize.pack import Packer
from lutra.quantize.reference import reference_layer
from lutra.quantize.smoothquant import smoothquant
from lutra.quantize.target import Method, Target
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv
from lutra_golden.model.packed import PackedLayer, PackedModel
from lutra_golden.model.shapes import LINEARS

__all__ = [
    "METHODS",
    "LayerStore",
    "Recipe",
    "is_floating",
    "quantize_layers",
    "quantize_model",
    "usable_windows",
]

METHODS: Mapping[str, Method | None] = {
    "rtn": None,
    "gptq": gptq,
    "awq": awq,
    "smoothquant": smoothquant,
}
"""Methods by name. Round-to-nearest looks at the weights alone and needs no calibration text."""
_TERNARY_BITS = 2
_SENSITIVITY_TOKENS = 2048  # of the calibration text, that the bits are allotted by

Progress = Callable[[str, float], None]
PlanCallback = Callable[[Sensitivity, BitPlan], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a quantisation.

    ``format`` gives the bits per weight, which are a mean if ``bits_budget`` is set; ``group`` is
    the number of weights per scale, ``method`` one of :data:`METHODS`, ``act_order`` an option of
    GPTQ, ``kv_bits`` the bits of cached keys and values, ``a_groups`` groups of activations, and
    ``offsets`` keeps those that a checkpoint's groups have. ``float_bits`` are those of matrices in
    floating point, the format's if left out, ``head_bits`` those of the codes of embedding and
    head, if they are in codes.
    """

    format: Format
    group: int = DEFAULT_GROUP
    method: str = "rtn"
    act_order: bool = False
    bits_budget: float | None = None
    kv_bits: Kv = 8
    a_groups: ActivationGroups | None = None
    offsets: bool = False
    float_bits: int | None = None
    head_bits: int | None = None

    def __post_init__(self) -> None:
        check_groups(self.format, self.a_groups)
        if self.method not in METHODS:
            raise LutraError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.ternary and METHODS[self.method] is not None:
            raise LutraError(
                f"{self.format} is rounded to nearest, not by {self.method}: leave --method out, "
                "or use another format"
            )
        if self.group < 1:
            raise LutraError(f"group must be 1 or more, not {self.group}")
        if self.act_order and self.method != "gptq":
            raise LutraError(
                f"--act-order is an option of gptq, not of {self.method}: leave it out or use gptq"
            )
        if self.bits_budget is None:
            return
        if not (math.isfinite(self.bits_budget) and CHOICES[0] <= self.bits_budget <= CHOICES[-1]):
            raise LutraError(
                f"--bits-budget must be {CHOICES[0]} to {CHOICES[-1]}, not {self.bits_budget:g}"
            )
        if self.format.ternary:
            raise LutraError(
                "--bits-budget is for weights in floating point, not for ternary ones: leave it out"
            )

    @property
    def calibrated(self) -> bool:
        """True if a calibration text is needed."""
        return METHODS[self.method] is not None or self.bits_budget is not None

    @property
    def ternary(self) -> bool:
        """True if matrices in floating point become ternary in groups."""
        bits = self.float_bits or self.format.w_bits
        return self.format.ternary and self.format.group is not None and bits == _TERNARY_BITS

    def rounded(self, model: Decoder) -> Decoder:
        """``model`` with its activations rounded."""
        return model.replaced(model.layers, self.format.a_bits, self.a_groups)

    def packer(self, model: Decoder) -> Packer:
        """What packs the layers of ``model``."""
        return Packer(self.rounded(model), self.kv_bits, self.head_bits, self.group, self.offsets)

    def settings(self, calibration: NDArray[np.int64] | None) -> dict[str, object]:
        """Everything except the model that the layers depend on; a run resumes if it is equal.

        They do not depend on the bits of the KV cache and of the head.
        """
        text = None
        if calibration is not None and self.calibrated:
            content = np.ascontiguousarray(calibration, "<i8").tobytes()
            text = f"{list(calibration.shape)} {hashlib.sha256(content).hexdigest()}"
        return {
            "format": str(self.format),
            "group": self.group,
            "method": self.method,
            "act_order": self.act_order,
            "bits_budget": self.bits_budget,
            "calibration": text,
            "offsets": self.offsets,
            "float_bits": self.float_bits,
            "activation_groups": None if self.a_groups is None else asdict(self.a_groups),
        }


class LayerStore(Protocol):
    """Storage for finished layers of one model under one recipe."""

    def load(self, i: int) -> PackedLayer | None:
        """Layer ``i``, or None if it has not been saved."""
        ...

    def save(self, i: int, layer: PackedLayer) -> None:
        """Keep layer ``i``."""
        ...

    def load_plan(self) -> BitPlan | None:
        """The bits that were allotted, or None if none were yet."""
        ...

    def save_plan(self, plan: BitPlan) -> None:
        """Keep the bits that were allotted."""
        ...


def quantize_model(
    model: Decoder,
    recipe: Recipe,
    calibration: NDArray[np.int64] | None = None,
    *,
    store: LayerStore | None = None,
    progress: Progress | None = None,
    on_plan: PlanCallback | None = None,
) -> PackedModel:
    """Quantise and pack a model, its layers in memory; see :func:`quantize_layers`."""
    packer = recipe.packer(model)
    layers = quantize_layers(
        model, recipe, calibration, packer=packer, store=store, progress=progress, on_plan=on_plan
    )
    return packer.finish(list(layers))


def quantize_layers(
    model: Decoder,
    recipe: Recipe,
    calibration: NDArray[np.int64] | None = None,
    *,
    packer: Packer,
    store: LayerStore | None = None,
    progress: Progress | None = None,
    on_plan: PlanCallback | None = None,
) -> Iterator[PackedLayer]:
    """Quantise and pack a model, yielding its layers as they are done.

    Layers that the ``store`` has are taken from it. Weights that the checkpoint holds as integers
    are taken as they are, whatever the method. ``calibration`` ``[n, length]`` are windows of
    tokens; ``on_plan`` gets the bits that a budget allots. ``packer`` is one of a model with the
    recipe's bits of activations, and can finish when the last layer is out.
    """
    windows = usable_windows(model, recipe, calibration)
    method = METHODS[recipe.method] if is_floating(model.layers[0]) else None
    plan = None
    if recipe.bits_budget is not None and windows is not None:
        plan = _plan(model, recipe, windows, store, progress, on_plan)
    states = None if method is None or windows is None else States(model, windows)
    stage, n_layers = stage_of(model), len(model.layers)
    for i in range(n_layers):
        if progress:
            progress(stage, i / n_layers)
        packed = None if store is None else store.load(i)
        if packed is None:
            layer = packer.balanced(model.layers[i])
            uniform: dict[str, int] = dict.fromkeys(
                LINEARS, recipe.float_bits or recipe.format.w_bits
            )
            bits = plan.of(i) if plan else uniform
            if method is None or states is None or not is_floating(layer):
                layer = quantize_layer(
                    layer, bits, recipe.group, offsets=recipe.offsets, ternary=recipe.ternary
                )
            else:
                target = Target(
                    bits=bits,
                    group=recipe.group,
                    a_bits=recipe.format.a_bits,
                    head_dim=model.config.head_dim,
                    act_order=recipe.act_order,
                    a_groups=recipe.a_groups,
                )
                layer = in_float(layer)
                layer = method(layer, states.inputs(i, layer), target)
            packed = packer.layer(i, layer)
            if store is not None:
                store.save(i, packed)
        else:
            packer.follow(i, reference_layer(model.config, packed))
        if states is not None and i + 1 < n_layers:
            layer = reference_layer(model.config, packed)
            states.x = states.after(i, layer, a_bits=recipe.format.a_bits, a_groups=recipe.a_groups)
        yield packed
    if progress:
        progress(stage, 1.0)


def usable_windows(
    model: Decoder, recipe: Recipe, calibration: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """The windows ``[n, length]`` of ``calibration`` if the recipe uses them for this model, else
    None; LutraError if it cannot be carried out."""
    check_format(model, recipe.format)
    if recipe.calibrated and is_floating(model.layers[0]):
        if calibration is None:
            option = f"--method {recipe.method}" if METHODS[recipe.method] else "--bits-budget"
            raise LutraError(f"{option} needs a calibration text: give one with --calib FILE")
        return _checked(model, calibration)
    if recipe.bits_budget is not None:
        raise LutraError(
            f"the weights of {model.name} are integers already, which a bits-budget is not for: "
            "leave --bits-budget out"
        )
    return None


def is_floating(layer: DecoderLayer) -> bool:
    """True if all matrices of a layer are in floating point, so that a method can round them."""
    return all(isinstance(layer.linear(name), Dense) for name in LINEARS)


def _checked(model: Decoder, calibration: NDArray[np.int64]) -> NDArray[np.int64]:
    context = model.config.max_position_embeddings
    if calibration.ndim != 2 or not calibration.size:
        raise LutraError(
            f"calibration must be windows of tokens [n, length], not {list(calibration.shape)}"
        )
    if calibration.shape[1] > context:
        raise LutraError(
            f"calibration windows have {calibration.shape[1]} tokens, the model's context "
            f"{context}: cut them shorter"
        )
    if calibration.min() < 0 or calibration.max() >= model.config.vocab_size:
        raise LutraError(
            f"calibration tokens must be in 0..{model.config.vocab_size - 1}, not "
            f"{calibration.min()}..{calibration.max()}: tokenise the text with the model's own "
            "tokenizer"
        )
    return calibration


def _plan(
    model: Decoder,
    recipe: Recipe,
    windows: NDArray[np.int64],
    store: LayerStore | None,
    progress: Progress | None,
    on_plan: PlanCallback | None,
) -> BitPlan:
    assert recipe.bits_budget is not None
    found = None if store is None else store.load_plan()
    if found is not None:
        return found
    some = windows[: max(_SENSITIVITY_TOKENS // windows.shape[1], 1)]
    sensitivity = measure(model, some, recipe.group, progress)
    plan = allot(sensitivity, recipe.bits_budget)
    if on_plan:
        on_plan(sensitivity, plan)
    if store is not None:
        store.save_plan(plan)
    return plan
