"""Machine code of every kernel for every architecture, without a GPU."""

import os

import pytest

pytest.importorskip("triton")

from lutra_kernels.catalogue import Variant, faults, variants
from lutra_kernels.compile import ARCHITECTURES, Compiled, compile_kernel
from lutra_kernels.launch import gemm_rule, gemv_rule
from lutra_kernels.matmul.fields import PLANES
from lutra_kernels.matmul.variants import gemm_variant, gemv_variant
from lutra_kernels.shapes import SHAPES, parse_width

pytestmark = pytest.mark.skipif(
    "TRITON_INTERPRET" in os.environ, reason="kernels are interpreted here"
)
CASES = [
    pytest.param(
        variant,
        arch,
        id=f"{variant.name} sm_{arch}",
        marks=() if variant.quick and arch == 90 else pytest.mark.slow,
    )
    for variant in variants()
    for arch in ARCHITECTURES
]


@pytest.mark.parametrize(("variant", "arch"), CASES)
def test_machine_code(variant: Variant, arch: int) -> None:
    assert faults(variant, variant.compile(arch)) == []


def _chosen() -> dict[str, Variant]:
    """Variants that the rules choose for layers of released models."""
    found: dict[str, Variant] = {}
    for name in ("W1.58", "W4g128", "W8g128"):
        width = parse_width(name)
        planes = PLANES[width.bits]
        for shape in SHAPES:
            n_blocks = shape.k // 128
            tile = gemv_rule(shape.n, n_blocks, max(planes), len(set(planes)) > 1)
            few = gemv_variant(
                width.bits, width.group, tile.block_n, tile.block_b, tile.num_warps,
                even=n_blocks % tile.block_b == 0,
            )  # fmt: skip
            found[few.name] = few
            for m in (8, 32, 64, 128):
                tile = gemm_rule(shape.n, n_blocks, m, width.group > 0)
                many = gemm_variant(
                    width.bits, width.group, tile.block_m, tile.block_n, tile.block_b,
                    tile.num_warps, split=min(tile.split, 2),
                )  # fmt: skip
                found[f"{many.name} {tile.block_b}"] = many
    return found


@pytest.mark.slow
@pytest.mark.parametrize("variant", [pytest.param(v, id=k) for k, v in _chosen().items()])
def test_tiles_that_the_rules_choose(variant: Variant) -> None:
    assert faults(variant, variant.compile(90)) == []


KERNELS = {str(variant.kernel.arg_names): variant for variant in variants()}.values()


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, id=v.name, marks=() if v.quick else pytest.mark.slow) for v in KERNELS],
)
def test_integers_that_are_one(variant: Variant) -> None:
    """A launch makes them constants of the language, which have fewer methods than tensors."""
    general = {p.name for p in getattr(variant.kernel, "params", ()) if p.do_not_specialize}
    general.add("first_m")
    ones = [n for n, kind in variant.arguments.items() if kind == "i32" and n not in general]
    arguments = {name: kind for name, kind in variant.arguments.items() if name not in ones}
    constants = {**variant.constants, **dict.fromkeys(ones, 1)}
    compile_kernel(variant.kernel, arguments, constants, arch=90, num_warps=variant.num_warps)


def test_names_differ() -> None:
    names = [variant.name for variant in variants()]
    assert sorted(names) == sorted(set(names))


SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 STL [R1], R4 ;
.L_x_1:
        /*0030*/                   IDP.4A.S8.U8 R5, R6, R7, R5 ;
        /*0040*/                   IDP.4A.S8.U8 R8, R6, R7, R8 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""


def _code(sass: str = SASS, registers: int = 40) -> Compiled:
    return Compiled(
        name="kernel", arch=90, registers=registers, stack=8, shared=0, num_warps=1, sass=sass
    )


def test_the_hot_loop_is_the_innermost_with_products() -> None:
    code = _code()
    assert dict(code.loop) == {"IDP.4A.S8.U8": 2, "BRA": 1}
    assert code.opcodes.total() == 8
    assert code.spills == 1
    assert code.dot_weights(tokens=2) == 4
    assert code.per_weight(4) == 0.75


def test_faults_are_found() -> None:
    variant = Variant(
        name="x", kernel=variants()[0].kernel, arguments={}, constants={}, max_registers=32,
        max_per_weight=0.3, matrix=False,
    )  # fmt: skip
    assert faults(variant, _code()) == [
        "1 spills, 8 bytes of stack",
        "40 registers, more than 32",
        "0.38 instructions per weight, more than 0.3",
    ]
    matrix = Variant(
        name="x", kernel=variants()[0].kernel, arguments={}, constants={}, matrix=True,
        max_per_weight=1.0,
    )  # fmt: skip
    narrow = SASS.replace(".128", "").replace("STL", "STG")
    assert faults(matrix, _code(narrow))[1:] == [
        "no integer matrix instruction",
        "no load of 128 bits",
        "no hot loop whose weights can be counted",
    ]


def test_every_argument_has_a_type_or_a_value() -> None:
    variant = variants()[0]
    with pytest.raises(ValueError, match=r"^arguments or constants must have BLOCK_G$"):
        constants = {k: v for k, v in variant.constants.items() if k != "BLOCK_G"}
        compile_kernel(variant.kernel, variant.arguments, constants, arch=90)
