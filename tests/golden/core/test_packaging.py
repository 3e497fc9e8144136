"""The accelerator as a block of a vendor's tools: registers by words."""

from lutra_golden.control.registers import REGISTERS, VERSION
from lutra_golden.core.packaging import IP_VERSION, REGISTER_BYTES, VLNV, register_words


def test_every_word_has_a_name_and_an_address_of_its_own() -> None:
    words = list(register_words())
    assert len({word.name for word in words}) == len({word.address for word in words}) == len(words)
    assert all(word.address % 4 == 0 and word.address < REGISTER_BYTES for word in words)
    assert len(words) == sum(register.count for register in REGISTERS.values())


def test_words_of_a_register_follow_each_other() -> None:
    addresses = {word.name: word.address for word in register_words()}
    assert addresses["DOORBELL"] == REGISTERS["DOORBELL"].address
    assert addresses["TOKEN_3"] == REGISTERS["TOKEN"].address + 12
    access = {word.name: word.access for word in register_words()}
    assert (access["IDENT"], access["CONTROL"], access["WATCHDOG"], access["IRQ_STATUS"]) == (
        "read-only", "write-only", "read-write", "read-write",
    )  # fmt: skip


def test_the_version_is_the_register_maps() -> None:
    assert IP_VERSION == f"{VERSION}.0"
    assert VLNV == f"lutra:ip:accelerator:{VERSION}.0"
