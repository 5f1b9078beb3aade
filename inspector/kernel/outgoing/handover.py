"""What kexec puts beside the preserved memory: how the next kernel finds the root.

x86: ``boot_params`` with a memory map and a ``setup_data`` list; arm64: a device tree. Both
lie in the first scratch area that has room, as does the array of scratch areas.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from abi import boot
from abi.errors import UsageError
from abi.fdt_write import FdtWriter
from inspector.kernel.machine import Machine
from inspector.kernel.record import pack

_ALIGN = 0x10000
_TREE_ALIGN = 2 << 20
_TREE_SIZE = 0x10000


@dataclass(frozen=True, slots=True)
class Segments:
    """Physical addresses: root FDT, scratch array, and boot_params or device tree.

    ``root`` is 0 if the kexec image carries no handover.
    """

    root: int
    root_size: int
    scratch_array: int
    scratch_size: int
    parameters: int


def place(machine: Machine, root: int) -> Segments:
    """Choose where the segments go. Raises UsageError if no scratch area has room."""
    for base, size in machine.scratch:
        end = base + size
        array = (end - _ALIGN) // _ALIGN * _ALIGN
        if machine.spec.architecture == "x86_64":
            parameters = array - _ALIGN
        else:
            parameters = (array - _TREE_SIZE) // _TREE_ALIGN * _TREE_ALIGN
        if size and parameters >= base:
            entries = 16 * len(machine.scratch)
            return Segments(root, machine.page_size, array, entries, parameters)
    raise UsageError("no scratch area has room for the segments of a kexec image")


def fill(machine: Machine, segments: Segments, command_line: str = "") -> None:
    """Write the segments, as they are at the entry of the next kernel."""
    areas = np.array(machine.scratch, "<u8")
    machine.memory.write(segments.scratch_array, areas.tobytes())
    if machine.spec.architecture == "x86_64":
        _boot_params(machine, segments, command_line)
    else:
        machine.memory.write(segments.parameters, _device_tree(machine, segments, command_line))


def clear(machine: Machine, segments: Segments) -> None:
    """The segments before the jump: their pages are there, nothing is in them."""
    for at in {segments.scratch_array, segments.parameters}:
        machine.memory.mark_zero(at, machine.page_size)


def _boot_params(machine: Machine, segments: Segments, command_line: str) -> None:
    page = bytearray(0x1000)
    setup_data = segments.parameters + 0x1000
    line_at = setup_data + 0x400
    page[boot.HDRS_OFFSET : boot.HDRS_OFFSET + 4] = boot.HDRS_MAGIC
    page[0x1FE:0x200] = b"\x55\xaa"
    struct.pack_into("<H", page, 0x206, 0x020F)
    page[boot.TYPE_OF_LOADER_OFFSET] = 0xD0
    struct.pack_into("<I", page, boot.CMD_LINE_PTR_OFFSET, line_at & 0xFFFFFFFF)
    if segments.root:
        struct.pack_into("<Q", page, boot.SETUP_DATA_OFFSET, setup_data)
    table = [(r.start, r.size) for r in sorted(machine.spec.ram, key=lambda r: r.start)]
    table = table[: boot.E820_MAX]
    page[boot.E820_COUNT_OFFSET] = len(table)
    for i, (start, size) in enumerate(table):
        at = boot.E820_TABLE_OFFSET + 20 * i
        struct.pack_into("<QQI", page, at, start, size, boot.E820_TYPE_RAM)
    data = pack(
        boot.setup_data_hdr, {"type": boot.SETUP_KEXEC_KHO, "len": boot.kho_data.size}
    ) + pack(
        boot.kho_data,
        {
            "fdt_addr": segments.root,
            "fdt_size": segments.root_size,
            "scratch_addr": segments.scratch_array,
            "scratch_size": segments.scratch_size,
        },
    )
    second = bytearray(0x1000)
    if segments.root:
        second[: len(data)] = data
    line = command_line.encode()[:2047]
    second[0x400 : 0x400 + len(line)] = line
    machine.memory.write(segments.parameters, bytes(page + second))


def _device_tree(machine: Machine, segments: Segments, command_line: str) -> bytes:
    def cells(*values: int) -> bytes:
        return b"".join(v.to_bytes(8, "big") for v in values)

    writer = FdtWriter(_TREE_SIZE)
    writer.begin_node("")
    writer.property("#address-cells", (2).to_bytes(4, "big"))
    writer.property("#size-cells", (2).to_bytes(4, "big"))
    writer.property_string("compatible", "linux,dummy-virt")
    for ram in sorted(machine.spec.ram, key=lambda r: r.start):
        writer.begin_node(f"memory@{ram.start:x}")
        writer.property_string("device_type", "memory")
        writer.property("reg", cells(ram.start, ram.size))
        if len(machine.nodes) > 1:
            writer.property("numa-node-id", ram.node.to_bytes(4, "big"))
        writer.end_node()
    writer.begin_node("chosen")
    writer.property_string("bootargs", command_line)
    if segments.root:
        writer.property(boot.CHOSEN_KHO_FDT.decode(), cells(segments.root, segments.root_size))
        writer.property(
            boot.CHOSEN_KHO_SCRATCH.decode(),
            cells(segments.scratch_array, segments.scratch_size),
        )
    writer.end_node()
    writer.end_node()
    return writer.finish()
