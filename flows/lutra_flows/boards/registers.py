"""The register map as SystemRDL; IP-XACT, kernel and driver have it from the same definition."""

from collections.abc import Iterator, Mapping

from lutra_golden.control.ap_ctrl import CTRL_BITS, WINDOW, XRT_REGISTERS
from lutra_golden.control.registers import ERROR_FIELDS, REGISTERS, VERSION, Register

__all__ = ["system_rdl"]

_SOFTWARE = {
    "ro": "sw = r; hw = w;",
    "rw": "sw = rw; hw = r;",
    "wo": "sw = w; hw = r;",
    "w1c": "sw = rw; onwrite = woclr; hw = w;",
    "w1t": "sw = rw; onwrite = wot; hw = w;",
}
"""Access of software and hardware (SystemRDL 2.0, sections 9.4 and 9.6)."""
Fields = Mapping[str, tuple[int, int, str]]


def system_rdl(*, xrt: bool = False) -> str:
    """SystemRDL 2.0 of the accelerator's registers, or of what a kernel of XRT has at its port."""
    lines = list(_accelerator())
    if xrt:
        lines += ["", *_kernel()]
    return "\n".join(["// Written by `lutra build`.", "", *lines, ""])


def _accelerator() -> Iterator[str]:
    yield "addrmap accelerator {"
    yield f'    name = "Lutra, register map {VERSION}";'
    yield from _defaults()
    fields: Mapping[str, Fields] = {"ERROR": ERROR_FIELDS}
    for name, register in REGISTERS.items():
        yield from _register(name, register, fields.get(name))
    yield "};"


def _kernel() -> Iterator[str]:
    yield "addrmap kernel {"
    yield '    name = "Lutra, kernel of XRT";'
    yield from _defaults()
    bits = {name: (bit, 1, doc) for name, (bit, _, doc) in CTRL_BITS.items()}
    for name, register in XRT_REGISTERS.items():
        if name == "CTRL":
            yield from _control(register, bits)
        else:
            yield from _register(name, register, None)
    yield f"    accelerator own @{WINDOW:#x};"
    yield "};"


def _defaults() -> Iterator[str]:
    yield "    default regwidth = 32;"
    yield "    default accesswidth = 32;"
    yield "    addressing = regalign;"


def _register(name: str, register: Register, fields: Fields | None) -> Iterator[str]:
    access = _SOFTWARE[register.access]
    if register.count > 1 and register.width > 32:
        # one number in several words
        for word in range(register.count):
            width = min(32, register.width - 32 * word)
            if width > 0:
                yield from _reg(f"{name}_{word}", register, {"value": (0, width, "")}, access)
                yield f"    }} {name}_{word} @{register.address + 4 * word:#05x};"
        return
    yield from _reg(name, register, fields or {"value": (0, min(32, register.width), "")}, access)
    array = f"[{register.count}]" if register.count > 1 else ""
    stride = " += 4" if array else ""
    yield f"    }} {name}{array} @{register.address:#05x}{stride};"


def _control(register: Register, bits: Fields) -> Iterator[str]:
    yield "    reg {"
    yield f'        desc = "{_text(register.doc)}";'
    for name, (bit, _, doc) in bits.items():
        access = _SOFTWARE[CTRL_BITS[name][1]]
        yield f'        field {{ {access} desc = "{_text(doc)}"; }} {name}[{bit}:{bit}];'
    yield f"    }} CTRL @{register.address:#05x};"


def _reg(name: str, register: Register, fields: Fields, access: str) -> Iterator[str]:
    yield "    reg {"
    yield f'        name = "{name}";'
    yield f'        desc = "{_text(register.doc)}";'
    for field, (first, width, doc) in fields.items():
        about = f' desc = "{_text(doc)}";' if doc else ""
        yield f"        field {{ {access}{about} }} {field}[{first + width - 1}:{first}];"


def _text(doc: str) -> str:
    return doc.replace("\\", "\\\\").replace('"', '\\"')
