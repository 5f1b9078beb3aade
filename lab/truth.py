"""What an image holds, said by the machine that made it, not by a decoder.

The sources are the kernels' own files (kallsyms, debugfs, boot_params, the list of
reservations in the consumer's log), user space's page maps, and the workload.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import TYPE_CHECKING, Any

from lab.ram import Ram

if TYPE_CHECKING:
    from lab.capture import Capture

_RESERVED_ENTRY = struct.Struct("<16sQQ")  # struct reserve_mem_table: name, start, size
_RESERVED_ENTRIES = 8
_SETUP_KEXEC_KHO = 10
_KHO_DATA = struct.Struct("<QQQQ")
_SCRATCH = struct.Struct("<QQ")

_MOMENTS = {
    "outgoing": "at machine_kexec: old kernel, segments not yet copied",
    "handoff": "at purgatory entry (image->start): segments copied, new kernel not yet started",
    "incoming": "new kernel has booted, /dev/liveupdate not opened yet",
    "retrieved": "all files retrieved, no session finished",
}


def symbols(kallsyms: bytes) -> dict[str, int]:
    """Virtual addresses out of lines of /proc/kallsyms."""
    found = {}
    for line in kallsyms.decode("ascii", "replace").splitlines():
        fields = line.split()
        if len(fields) >= 3:
            found[fields[2]] = int(fields[0], 16)
    return found


def text_offset(blobs: dict[str, bytes], side: str) -> tuple[dict[str, int], int]:
    """A kernel's symbols, and what to subtract from those of its image for a physical address."""
    table = symbols(blobs.get(f"{side}/symbols", b""))
    m = re.search(rb"([0-9a-f]+)-[0-9a-f]+ : Kernel code", blobs.get(f"{side}/iomem", b""))
    if "_text" not in table or m is None:
        return {}, 0
    return table, table["_text"] - int(m[1], 16)


def reserved_table(ram: Ram, table: dict[str, int], shift: int) -> dict[str, int]:
    """Start of each reserve_mem region, out of a kernel's own table."""
    if "reserved_mem_table" not in table:
        return {}
    data = ram.read(table["reserved_mem_table"] - shift, _RESERVED_ENTRY.size * _RESERVED_ENTRIES)
    found = {}
    for name, start, size in _RESERVED_ENTRY.iter_unpack(data):
        text = name.split(b"\0")[0].decode("ascii", "replace")
        if text and size:
            found[text] = start
    return found


def _frames(blob: bytes) -> list[tuple[int, int]]:
    runs = []
    for line in blob.decode("ascii").splitlines():
        first, _, count = line.partition("+")
        runs.append((int(first, 16), int(count)))
    return runs


def _first_frames(runs: list[tuple[int, int]], limit: int = 4) -> list[int]:
    return [first + i for first, count in runs for i in range(min(count, limit))][:limit]


def preserved_blocks(dmesg: bytes) -> list[tuple[int, int]] | None:
    """(physical address, order) that the consumer reserved for KHO, as its log says.

    None if the log does not say (no ``memblock=debug``, or the line was lost).
    """
    pattern = re.compile(
        rb"memblock_reserve\S*: \[0x([0-9a-f]+)-0x([0-9a-f]+)\].* "
        rb"(?:kho_mem_deserialize|deserialize_bitmap|kho_preserved_memory_reserve|"
        rb"kho_radix_walk_tree|__kho_radix_walk_tree|__kho_radix_walk_leaf|kho_radix_walk_leaf|"
        rb"kho_mem_init|kho_memory_init)"
    )
    blocks = []
    for m in pattern.finditer(dmesg):
        first, last = int(m[1], 16), int(m[2], 16)
        size = last + 1 - first
        if size <= 0 or size & 0xFFF or size & (size - 1):
            return None
        blocks.append((first, (size >> 12).bit_length() - 1))
    return sorted(blocks) or None


def truth(result: Capture, moment: str) -> dict[str, Any]:
    """The truth file of one image."""
    workload, blobs = result.workload, result.blobs
    record: dict[str, Any] = {
        "producer": result.producer.release,
        "consumer": result.consumer.release,
        "cmdline": result.command_line,
        "seed": workload.seed,
        "ram_bytes": workload.ram,
        "moment": _MOMENTS[moment],
        "reserve_mem": [
            {
                "name": region.name,
                "start": hex(result.regions[region.name]),
                "size": region.size,
                "pattern_token": hex(region.key),
                "sha256": hashlib.sha256(region.content()).hexdigest(),
            }
            for region in workload.reserve_mem
            if region.name in result.regions
        ],
        "setup_data_kho": _setup_data(blobs),
        "scratch": _scratch(blobs),
        "debugfs": {
            name.removeprefix("producer/kho/"): blob.hex()
            for name, blob in sorted(blobs.items())
            if name.startswith("producer/kho/out/") and len(blob) <= 1 << 16
        },
    }
    m = re.search(rb"liveupdate number: (\d+)", blobs.get("consumer/dmesg", b""))
    record["liveupdate_number_in"] = int(m[1]) if m else None
    made = {e["name"] for e in result.of("session") if not e["errno"]}
    record["sessions"] = [s for s in workload.sessions if s.encode().hex() in made]
    table, shift = text_offset(blobs, "producer")
    record["symbols"] = {
        name: {"vaddr": hex(at), "paddr": hex(at - shift)} for name, at in table.items()
    }
    blocks = preserved_blocks(blobs.get("consumer/dmesg", b""))
    if blocks is not None:
        lines = "".join(f"{pa:#x} {order}\n" for pa, order in blocks)
        record["preserved"] = {
            "source": "the consumer's memblock=debug log",
            "blocks": len(blocks),
            "pages": sum(1 << order for _, order in blocks),
            "sha256_of_lines_pa_order": hashlib.sha256(lines.encode()).hexdigest(),
        }
    record["files"] = _files(result)
    if result.report is not None:
        record["consumer_outcome"] = {
            "outcome": result.report.outcome,
            "stopped": result.report.stopped,
            "reasons": result.report.reasons[:20],
        }
    return record


def _files(result: Capture) -> list[dict[str, Any]]:
    made = {(e["session"], e["token"]): e for e in result.of("memfd")}
    got = {(e["session"], e["token"]): e for e in result.of("file")}
    files = []
    for spec in result.workload.files:
        where = (spec.session.encode().hex(), spec.token)
        report = made.get(where)
        if report is None or report.get("errno", 1):
            continue
        item: dict[str, Any] = {
            "session": spec.session,
            "token": hex(spec.token),
            "key": hex(spec.key),
            "size": spec.size,
            "content": spec.content,
            "huge": spec.huge,
            "seals": hex(report["seals"]),
            "pos": report["position"],
            "sha256": spec.sha256(),
            "nr_pages": spec.pages,
        }
        blob = result.blobs.get(f"frames/{spec.token:016x}")
        if blob:
            runs = _frames(blob)
            item["frames"] = [f"{first:#x}+{count}" for first, count in runs]
            item["first_pfns"] = _first_frames(runs)
        if where in got:
            item["consumer_result"] = got[where]
        files.append(item)
    return files


def _setup_data(blobs: dict[str, bytes]) -> dict[str, Any] | None:
    for name, kind in blobs.items():
        m = re.fullmatch(r"consumer/setup_data/(\d+)/type", name)
        if m is None or int(kind, 0) != _SETUP_KEXEC_KHO:
            continue
        data = blobs.get(f"consumer/setup_data/{m[1]}/data", b"")
        if len(data) >= _KHO_DATA.size:
            fdt, fdt_size, scratch, scratch_size = _KHO_DATA.unpack_from(data)
            return {
                "fdt_addr": hex(fdt),
                "fdt_size": fdt_size,
                "scratch_addr": hex(scratch),
                "scratch_size": scratch_size,
            }
    return None


def _scratch(blobs: dict[str, bytes]) -> list[dict[str, str]]:
    """The scratch areas as debugfs lists them (two files of numbers)."""
    starts = blobs.get("producer/kho/out/scratch_phys", b"").split()
    sizes = blobs.get("producer/kho/out/scratch_len", b"").split()
    return [
        {"addr": hex(int(a, 0)), "size": hex(int(n, 0))}
        for a, n in zip(starts, sizes, strict=False)
    ]
