"""AMD IOMMU device table entries.

One entry of 32 bytes per device id (bus << 8 | devfn). No hand-over series for this IOMMU
is known; the format is here to read what a kernel of today leaves in memory.

Source: AMD I/O Virtualization Technology (IOMMU) specification.
"""

from __future__ import annotations

from dataclasses import dataclass

from abi.device_table import TableRoot, address, word
from abi.schema import Struct

DTE_SIZE = 32
#: Mode values that have no meaning.
RESERVED_MODES = (7,)

device_table_entry = Struct(
    "dev_table_entry",
    word(
        "w0",
        valid=0,
        translation_valid=1,
        host_access_dirty=(8, 7),
        mode=(11, 9),
        host_root=(51, 12),
        ppr=52,
        gprp=53,
        giov=54,
        guest_valid=55,
        guest_levels=(57, 56),
        gcr3_14_12=(60, 58),
        read=61,
        write=62,
    ),
    word(
        "w1",
        domain_id=(15, 0),
        gcr3_30_15=(31, 16),
        device_tlb=32,
        suppress=(36, 33),
        system_management=(41, 40),
        gcr3_51_31=(63, 43),
    ),
    word(
        "w2",
        interrupt_valid=0,
        interrupt_length=(4, 1),
        interrupt_table=(51, 6),
        guest_paging_mode=(55, 54),
        init_pass=56,
        external_pass=57,
        nmi_pass=58,
        interrupt_control=(61, 60),
        lint0_pass=62,
        lint1_pass=63,
    ),
    word("w3", attributes=(63, 0)),
)


@dataclass(frozen=True, slots=True)
class DeviceTableEntry:
    """A device table entry; pointers are addresses, ``mode`` the number of host levels."""

    raw: tuple[int, int, int, int]
    valid: bool
    translation_valid: bool
    mode: int
    host_root: int
    guest_valid: bool
    guest_levels: int
    guest_root: int
    read: bool
    write: bool
    domain_id: int
    interrupt_valid: bool
    interrupt_table: int
    fields: dict[str, int]

    @property
    def root(self) -> TableRoot | None:
        """The host page table in effect; None if DMA is blocked or untranslated."""
        if not (self.valid and self.translation_valid) or self.mode in (0, *RESERVED_MODES):
            return None
        return TableRoot("amdv1", self.host_root, self.mode, min(12 + 9 * self.mode, 64))


def parse_dte(data: bytes, offset: int = 0) -> DeviceTableEntry:
    """Decode 32 bytes. Raises CodecError if there are fewer."""
    v = device_table_entry.unpack(data, offset)
    guest = v["gcr3_14_12"] << 12 | v["gcr3_30_15"] << 15 | v["gcr3_51_31"] << 31
    return DeviceTableEntry(
        raw=(v["w0"], v["w1"], v["w2"], v["w3"]),
        valid=bool(v["valid"]),
        translation_valid=bool(v["translation_valid"]),
        mode=v["mode"],
        host_root=address(v["host_root"], 12),
        guest_valid=bool(v["guest_valid"]),
        guest_levels=v["guest_levels"] + 1,
        guest_root=guest,
        read=bool(v["read"]),
        write=bool(v["write"]),
        domain_id=v["domain_id"],
        interrupt_valid=bool(v["interrupt_valid"]),
        interrupt_table=address(v["interrupt_table"], 6),
        fields=v,
    )
