"""The register map: no two registers share an address, and everybody's arrays fit."""

from lutra_golden.control.chunks import POSITION_WIDTH, TOKENS_WIDTH, ChunkEntry
from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import COUNTERS, IDENT, REGISTERS, TILE_ARRAYS, UnitState
from lutra_golden.core.configs import CONFIGS
from lutra_golden.core.ports import ADDRESS_WIDTH, BOUNDARY_BYTES

MAP_BYTES = 4096


def test_registers_lie_apart_on_words_in_one_page() -> None:
    used: set[int] = set()
    for name, register in REGISTERS.items():
        assert register.address % 4 == 0, name
        addresses = {register.address + 4 * i for i in range(register.count)}
        assert len(addresses) == register.count >= 1, name
        assert not addresses & used, name
        used |= addresses
    assert max(used) < MAP_BYTES


def test_every_register_is_described() -> None:
    for name, register in REGISTERS.items():
        assert name.isupper()
        assert register.doc
        assert register.access in {"ro", "rw", "wo", "w1c"}
        assert 1 <= register.width <= 32 * register.count


def test_ident_reads_as_letters() -> None:
    assert IDENT.to_bytes(4, "little") == b"LTRA"


def test_addresses_of_memory_have_two_words() -> None:
    for name in ("PROGRAM_BASE", "WEIGHT_BASE", "LOGITS_BASE", "FINGERPRINT"):
        assert REGISTERS[name].count == 2
        assert REGISTERS[name].address % 8 == 0


def test_arrays_hold_the_largest_tile() -> None:
    tile = max(config.pass_tokens for config in CONFIGS.values())
    for name in (*TILE_ARRAYS, "ARGMAX", "SCALE"):
        assert REGISTERS[name].count >= tile


def test_chunks_fit_their_registers() -> None:
    last = ChunkEntry(
        (1 << POSITION_WIDTH) - 1, (1 << TOKENS_WIDTH) - 1, (1 << ADDRESS_WIDTH) - BOUNDARY_BYTES
    )
    for name, word in zip(("CHUNK", "CHUNK_KV"), last.words, strict=True):
        assert word == (1 << REGISTERS[name].width) - 1


def test_counters_have_two_words_each() -> None:
    assert REGISTERS["COUNTER"].count == 2 * len(COUNTERS)
    assert len(set(COUNTERS)) == len(COUNTERS)
    for unit in Unit:
        assert {f"{unit.name.lower()}_busy", f"{unit.name.lower()}_stall"} <= set(COUNTERS)


def test_states_of_all_units_and_the_fetch_fit_one_word() -> None:
    assert max(UnitState) < 16
    assert 4 * (len(Unit) + 1) <= 32
