"""Following pointers: generations without a capture, and images that are wrong on purpose."""

from __future__ import annotations

import random
import struct
import time
from typing import Any

import pytest
from kaitai_support import Sparse, c_structs, core
from test_kaitai_images import LAYOUTS, root_address

from abi.errors import KhoError
from specs import KhoVmalloc, Luo, parse, torture
from specs.follow import Follower, Limits
from specs.handlers import read_file, read_flb
from specs.iommu import iommu_generations, read_iommu
from specs.reader import ImageReader, Layouts, read_image

PAGE = 4096


def pack(generation: str, struct_name: str, /, **values: int | bytes | list[bytes]) -> bytes:
    """A struct with members at the places that layouts.json gives them."""
    layout = c_structs()[generation, struct_name]
    data = bytearray(layout["size"])
    for field in layout["fields"]:
        value = values.pop(field["name"], None)
        at = field["offset"]
        if value is None:
            continue
        if isinstance(value, int) and "bit_size" in field:
            word = int.from_bytes(data[at : at + 8], "little") | value << field["bit_offset"]
            data[at : at + 8] = word.to_bytes(8, "little")[: len(data) - at]
        elif isinstance(value, int):
            data[at : at + field["size"]] = value.to_bytes(field["size"], "little")
        else:
            raw = b"".join(value) if isinstance(value, list) else value
            data[at : at + len(raw)] = raw
    assert not values, f"no such member: {values}"
    return bytes(data)


def fdt(nodes: list[Any]) -> bytes:
    """A device tree; a node is [name, {property: value}, child...]."""
    strings, body = bytearray(), bytearray()

    def visit(node: list[Any]) -> None:
        name = node[0] + b"\0"
        body.extend(struct.pack(">I", 1) + name + bytes(-len(name) % 4))
        for key, value in node[1].items():
            if key not in bytes(strings):
                strings.extend(key + b"\0")
            at = bytes(strings).index(key + b"\0")
            body.extend(struct.pack(">III", 3, len(value), at) + value + bytes(-len(value) % 4))
        for child in node[2:]:
            visit(child)
        body.extend(struct.pack(">I", 2))

    visit(nodes)
    body.extend(struct.pack(">I", 9))
    at = 40 + 16
    head = (0xD00DFEED, at + len(body) + len(strings), at, at + len(body), 40, 17, 16, 0)
    return struct.pack(">10I", *head, len(strings), len(body)) + bytes(16) + body + strings


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def kho_root(memory: Sparse, luo: bytes, compatible: bytes = b"kho-v4") -> int:
    blob = {b"preserved-data": u64(0x2000), b"blob-size": u64(len(luo))}
    tree = [b"", {b"compatible": compatible + b"\0", b"preserved-memory-map": u64(0)}]
    memory.put(0x2000, luo, PAGE)
    return memory.put(0x1000, fdt([*tree, [b"LUO", blob]]), PAGE)


def session(name: bytes, files: int, count: int) -> bytes:
    return pack(
        "linux-7.3",
        "luo_session_ser",
        name=name,
        file_set_ser=u64(files) + u64(count),
    )


def file(handler: bytes, data: int, token: int) -> bytes:
    return pack("linux-7.3", "luo_file_ser", compatible=handler, data=data, token=token)


# LUO generations


@pytest.mark.parametrize(
    ("string", "block_sessions", "block_files"),
    [
        (b"luo-v3", False, False),
        (b"luo-v4", True, False),
        (b"luo-v3-kho-block-v1", True, False),
        (b"luo-v5", True, True),
        (b"luo-v5;block-v1", True, True),
        (b"", True, True),
    ],
)
def test_luo_struct_generations(string: bytes, block_sessions: bool, block_files: bool) -> None:
    memory = Sparse()
    width = (len(string) + 8) // 8 * 8 if string else 128
    luo = string.ljust(width, b"\0") + u64(7) + u64(0x10000) + u64(0)
    one, two = session(b"one", 0x30000, 2), session(b"two", 0, 0)
    if block_sessions:
        memory.put(0x10000, u64(0x11000) + u64(1) + one, PAGE)
        memory.put(0x11000, u64(0) + u64(1) + two, PAGE)
    else:
        memory.put(0x10000, u64(2) + one + two, 16 * PAGE)
    files = [file(b"tmpfs-mnt-v1", 0x40000, 1), file(b"unknown", 0x50000, 1 << 63)]
    if block_files:
        memory.put(0x30000, u64(0x31000) + u64(1) + files[0], PAGE)
        memory.put(0x31000, u64(0) + u64(1) + files[1], PAGE)
    else:
        memory.put(0x30000, b"".join(files), 2 * PAGE)
    memory.put(0x40000, pack("tmpfs-mnt-v1", "tmpfs_luo_mnt_ser", max_blocks=9, mode=0o1777))
    image = read_image(memory, kho_root(memory, luo))
    assert image.luo is not None
    assert image.luo.compatible == string.decode()
    assert image.luo.liveupdate_num == 7
    assert [s.name for s in image.luo.sessions] == [b"one", b"two"]
    first, second = image.luo.sessions[0].files
    assert (first.body.ser.max_blocks, first.body.ser.mode) == (9, 0o1777)
    assert (second.handler, second.token, second.body) == (b"unknown", 1 << 63, None)
    assert image.problems == []


@pytest.mark.parametrize("version", [1, 2])
def test_luo_tree_generations(version: int) -> None:
    memory = Sparse()
    header = {
        b"compatible": f"luo-session-v{version}".encode() + b"\0",
        b"luo-session-header": u64(0x10000),
    }
    tree = [b"", {b"compatible": b"luo-v1\0", b"liveupdate-number": u64(3)}]
    blob = fdt([*tree, [b"luo-session", header]])
    names = [b"a", b"b" * 64]
    if version == 1:
        entries = [pack("luo-v1-session-v1", "luo_session_ser", name=n) for n in names]
    else:
        entries = [session(n, 0, 0) for n in names]
    memory.put(0x10000, u64(2) + b"".join(entries), 16 * PAGE)
    image = read_image(memory, kho_root(memory, blob, b"kho-v3"))
    assert image.luo is not None
    assert [s.name for s in image.luo.sessions] == names
    assert image.luo.liveupdate_num == 3


def test_luo_v2() -> None:
    memory = Sparse()
    memory.put(0x8000, u64(4) + u64(0x10000) + u64(0x20000))
    memory.put(0x10000, u64(1) + session(b"a", 0, 0), 16 * PAGE)
    flb = pack("linux-7.1", "luo_flb_ser", name=b"test", data=0xFEEDF00DCAFEBEE0, count=2)
    memory.put(0x20000, u64(1) + u64(1) + flb, PAGE)
    blob = fdt([b"", {b"compatible": b"luo-v2\0", b"luo-abi-header": u64(0x8000)}])
    image = read_image(memory, kho_root(memory, blob))
    assert image.luo is not None
    assert (image.luo.compatible, image.luo.liveupdate_num) == ("luo-v2", 4)
    assert [s.name for s in image.luo.sessions] == [b"a"]
    assert [(f.name, f.data, f.count) for f in image.luo.flbs] == [(b"test", 0xFEEDF00DCAFEBEE0, 2)]
    assert image.problems == []


# IOMMU postings


def iommu_image(generation: str, counts: tuple[int, int, int]) -> tuple[Sparse, int]:
    """Chains with the given numbers of hw, domain and device objects, full pages first."""
    memory = Sparse()
    rfc = "iommu_lu_flb_ser" in {n for g, n in c_structs() if g == generation}
    hw, device = ("iommu_ser", "device_ser") if rfc else ("iommu_hw_ser", "iommu_device_ser")
    head = "obj" if rfc else "hdr"
    firsts = []
    for which, (name, count) in enumerate(
        zip((hw, "iommu_domain_ser", device), counts, strict=True)
    ):
        size = c_structs()[generation, name]["size"]
        capacity = (PAGE - 16) // size
        objects = []
        for i in range(count):
            reference = struct.pack("<II", i, 5) if rfc else struct.pack("<I", 5)
            members: dict[str, Any] = {head: reference}
            if which == 0:
                members |= {"token": 0xFED90000 + i, "type": 1}
            elif which == 1:
                top = "top_table" if rfc else "top_table_phys"
                members |= {top: (i + 1) << 12, "top_level": 3}
            else:
                members |= {"devid": i + 8}
            objects.append(pack(generation, name, **members))
        base = 0x100000 * (which + 1)
        firsts.append(base)
        pages = [objects[i : i + capacity] for i in range(0, count, capacity)] or [[]]
        for i, page in enumerate(pages):
            following = base + (i + 1) * PAGE if i + 1 < len(pages) else 0
            array = u64(following) + u64(len(page)) + b"".join(page)
            memory.put(base + i * PAGE, array, PAGE)
    if rfc:
        members = {"iommus_phys": firsts[0], "nr_iommus": counts[0]}
        members |= {"iommu_domains_phys": firsts[1], "nr_domains": counts[1]}
        members |= {"devices_phys": firsts[2], "nr_devices": counts[2]}
        flb = pack(generation, "iommu_lu_flb_ser", **members)
    else:
        members = {"iommu_array_phys": firsts[0], "iommu_domain_array_phys": firsts[1]}
        members |= {"device_array_phys": firsts[2]}
        if generation.startswith("iommu-v4"):
            members["version"] = 1
        flb = pack(generation, "iommu_flb_ser", **members)
    return memory, memory.put(0x8000, flb, PAGE)


@pytest.mark.parametrize("generation", iommu_generations())
@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 2, 3), (2, 300, 250)])
def test_iommu_postings(generation: str, counts: tuple[int, int, int]) -> None:
    memory, flb = iommu_image(generation, counts)
    follower = Follower(memory)
    state = read_iommu(follower, flb, generation)
    assert state is not None
    assert follower.problems == []
    assert (len(state.hw), len(state.domains), len(state.devices)) == counts
    assert [d.devid for _, d in state.devices] == [i + 8 for i in range(counts[2])]
    assert [h.token for _, h in state.hw] == [0xFED90000 + i for i in range(counts[0])]
    assert all(int(h.type) == 1 for _, h in state.hw)
    tops = [getattr(d, "top_table", 0) or d.top_table_phys for _, d in state.domains]
    assert tops == [(i + 1) << 12 for i in range(counts[1])]
    for pa, domain in state.domains:
        size = c_structs()[generation, "iommu_domain_ser"]["size"]
        assert (pa % PAGE - 16) % size == 0
        assert (domain.hdr if hasattr(domain, "hdr") else domain.obj).ref_count == 5


def test_iommu_counts_beyond_the_chain() -> None:
    memory, flb = iommu_image("iommu-v1-2026-02", (1, 2, 3))
    memory.pieces[flb] = memory.pieces[flb][:24] + u64(1 << 40) + memory.pieces[flb][32:]
    follower = Follower(memory)
    state = read_iommu(follower, flb, "iommu-v1-2026-02")
    assert state is not None
    assert "objects are missing" in follower.problems[-1].message


# Handlers


def test_iommufd_forms() -> None:
    memory = Sparse()
    follower = Follower(memory)
    entries = [
        pack("iommu-v1-2026-02", "iommufd_hwpt_lu", token=i, domain_data=i << 12, reclaimed=1)
        for i in (1, 2)
    ]
    memory.put(0x1000, struct.pack("<I", 2) + b"".join(entries))
    body = read_file(follower, b"iommufd-v1", 0x1000, Layouts(iommufd="iommu-v1-2026-02"))
    found = [(pa, h.token, h.domain_data, h.reclaimed) for pa, h in body.hwpts]
    assert found == [(0x1004, 1, 0x1000, 1), (0x1011, 2, 0x2000, 1)]
    body = read_file(follower, b"iommufd-v1", 0x1000, Layouts(iommufd="iommu-rfc-v1-2025-09"))
    assert body.hwpts == []
    assert follower.problems == []


@pytest.mark.parametrize(
    ("generation", "devices_at"),
    [
        ("pci-luo-rfc-2025", 8),
        ("pci-luo-rfc-2025-drvname", 8),
        ("pci-v1-a-2025-11", 8),
        ("pci-v1-b-2026-01", 16),
        ("pci-v1-c-2026-03", 16),
        ("pci-v2-u64-2026-04", 16),
        ("pci-v2-u32-2026-05", 8),
    ],
)
def test_pci_postings(generation: str, devices_at: int) -> None:
    memory = Sparse()
    follower = Follower(memory)
    key = "path" if "rfc" in generation else "bdf"
    devices = [pack(generation, "pci_dev_ser", **{key: 0x18 + i}) for i in range(3)]
    members = {f["name"] for f in c_structs()[generation, "pci_ser"]["fields"]}
    counts = dict.fromkeys(members & {"count", "nr_devices", "max_nr_devices"}, 3)
    memory.put(0x1000, pack(generation, "pci_ser", **counts) + b"".join(devices))
    body = read_flb(follower, b"pci-v1", 0x1000, Layouts(pci=generation))
    size = c_structs()[generation, "pci_dev_ser"]["size"]
    found = [(pa, getattr(d, key)) for pa, d in body.devices]
    assert found == [(0x1000 + devices_at + i * size, 0x18 + i) for i in range(3)]
    assert follower.problems == []


VFIO = [
    ("vfio-pci-rfc-v1-2025-10-patch7", {"bdf": 24}),
    ("vfio-pci-rfc-v1", {"bdf": 24, "cfg_size": 4096, "pci_saved_state_phys": 0x9000}),
    ("vfio-pci-v1-2025-11", {"bdf": 24, "domain": 5}),
    ("vfio-pci-v1-reset", {"bdf": 24, "domain": 5, "reset_works": 1}),
    ("vfio-pci-v1-iommufd", {"bdf": 24, "domain": 5, "reset_works": 1}),
    ("vfio-pci-v1-dom32", {"bdf": 24, "domain": 0x10005}),
    ("vfio-pci-v2", {"bdf": 24, "domain": 0x10005, "reset_works": 1}),
    ("vfio-pci-v2-iommufd", {"bdf": 24, "domain": 0x10005, "reset_works": 1}),
]


@pytest.mark.parametrize(("generation", "members"), VFIO)
def test_vfio_postings(generation: str, members: dict[str, int]) -> None:
    memory = Sparse()
    follower = Follower(memory)
    memory.put(0x1000, pack(generation, "vfio_pci_core_device_ser", **members))
    body = read_file(follower, b"vfio-pci-v2", 0x1000, Layouts(vfio=generation))
    assert {k: getattr(body.ser, k) for k in members} == members
    assert follower.problems == []


def test_folio_files() -> None:
    memory = Sparse()
    follower = Follower(memory)
    folios = [
        pack("linux-7.3", "memfd_luo_folio_ser", pfn=(1 << 52) - 1 - i, flags=3, index=i)
        for i in range(300)
    ]
    content = b"".join(folios)
    memory.put(0x10000, content[:PAGE], PAGE)
    memory.put(0x13000, content[PAGE:], PAGE)
    memory.put(0x20000, u64(0) + u64(0x10000) + u64(0x13000), PAGE)
    area = pack("linux-7.3", "kho_vmalloc", first=0x20000, total_pages=2, flags=1, order=0)
    expected = [((1 << 52) - 1 - i, 3, i) for i in range(300)]
    for generation, name, handler in (
        ("linux-6.19", "memfd_luo_ser", b"memfd-v1"),
        ("linux-7.3", "memfd_luo_ser", b"memfd-v2"),
        ("luo-features-dev", "memfd_luo_ser", b"memfd"),
        ("hugetlb-v1", "hugemfd_ser", b"huge-memfd-v1"),
        ("kvm-guest-memfd-v1", "guest_memfd_luo_ser", b"guest_memfd_luo_v1"),
    ):
        memory.put(0x1000, pack(generation, name, size=77, nr_folios=300, folios=area))
        body = read_file(follower, handler, 0x1000, Layouts())
        assert body.ser.size == 77
        assert body.folios == expected
    assert follower.problems == []


# Things that are wrong


def problems(follower: Follower) -> list[tuple[str, str]]:
    return [(p.kind, p.where) for p in follower.problems]


def test_page_size_is_checked() -> None:
    with pytest.raises(KhoError, match="page size"):
        Follower(Sparse(), 8192)


def test_cyclic_session_list() -> None:
    memory = Sparse()
    memory.put(0x10000, u64(0x11000) + u64(1) + session(b"a", 0, 0), PAGE)
    memory.put(0x11000, u64(0x10000) + u64(1) + session(b"b", 0, 0), PAGE)
    source = ImageReader(memory)
    assert [s.name for s in source.session_list(0x10000)] == [b"a", b"b"]
    assert problems(source.follower) == [("cycle", "sessions")]


def test_cyclic_vmalloc_chunks() -> None:
    memory = Sparse()
    memory.put(0x1000, u64(0x1000) + u64(0x5000) * 511, PAGE)
    follower = Follower(memory)
    area = parse(KhoVmalloc, struct.pack("<QIHH", 0x1000, 511, 1, 0))
    assert len(follower.vmalloc(area)) == 511
    assert problems(follower) == [("cycle", "vmalloc")]


def test_radix_node_reached_twice() -> None:
    memory = Sparse()
    memory.put(0x1000, u64(0x1000) * 512, PAGE)
    follower = Follower(memory)
    assert list(follower.radix_blocks(0x1000)) == []
    assert problems(follower) == [("cycle", "radix")] * 512


def test_full_bitmaps_stop_at_the_budget() -> None:
    memory = Sparse()
    memory.put(0x2000, b"\xff" * PAGE)
    chunk = struct.pack("<QII", 0, 0, 255) + struct.pack("<QQ", 0, 0x2000) * 255
    memory.put(0x1000, chunk)
    follower = Follower(memory, limits=Limits(entries=10_000))
    assert len(list(follower.bitmap_blocks(0x1000, PAGE))) == 10_000
    assert problems(follower) == [("budget", "bitmap")]


class EverySector:
    """Every page is a full array that leads to the next page: an endless list."""

    def __init__(self, header: Any) -> None:
        self.header = header

    def read(self, pa: int, size: int) -> bytes:
        return (self.header(pa) + b"\1" * size)[:size]


def test_endless_list_stops() -> None:
    memory = EverySector(lambda pa: u64(pa + PAGE) + u64(0))
    source = ImageReader(memory)
    begin = time.monotonic()
    assert list(source.session_list(PAGE)) == []
    assert problems(source.follower) == [("budget", "sessions")]
    assert time.monotonic() - begin < 5


def test_endless_list_of_full_pages_stops() -> None:
    memory = EverySector(lambda pa: u64(pa + PAGE) + u64(63))
    source = ImageReader(memory, limits=Limits(entries=5_000))
    follower = source.follower
    pages = follower.pages("files", PAGE, Luo.FileBlock, lambda b: b.hdr.next)
    assert len(list(follower.entries("files", pages, "files", 16, 64))) == 5_000
    assert problems(follower) == [("budget", "files")]


def test_structure_budget() -> None:
    memory = EverySector(lambda pa: u64(pa + PAGE) + u64(0))
    source = ImageReader(memory, limits=Limits(structures=10))
    assert list(source.session_list(PAGE)) == []
    assert problems(source.follower) == [("budget", "sessions")]


def test_count_over_capacity() -> None:
    memory = Sparse()
    memory.put(0x10000, u64(0) + u64(52), PAGE)
    source = ImageReader(memory)
    assert list(source.session_list(0x10000)) == []
    assert "max 51" in source.follower.problems[0].message


def test_root_that_is_no_tree() -> None:
    memory = Sparse()
    memory.put(0x1000, b"\x7fELF" + b"\xff" * PAGE)
    image = read_image(memory, 0x1000)
    assert image.compatible == ""
    assert [p.kind for p in image.problems] == ["refused"]
    missing = read_image(memory, 0x9000)
    assert [p.kind for p in missing.problems] == ["hole"]


@pytest.mark.parametrize("tokens", [[1, 0, 1, 0, 9], [2, 9], [1, 0, 2, 1, 0, 2, 9], [9], [1] * 400])
def test_trees_that_do_not_nest(tokens: list[int]) -> None:
    body = struct.pack(f">{len(tokens)}I", *tokens)
    head = (0xD00DFEED, 56 + len(body), 56, 56, 40, 17, 16, 0, 0, len(body))
    memory = Sparse()
    memory.put(0x1000, struct.pack(">10I", *head) + bytes(16) + body)
    follower = Follower(memory)
    assert follower.tree(0x1000) is None
    assert len(follower.problems) == 1


def test_deep_tree_is_refused() -> None:
    node: list[Any] = [b"x", {}]
    for _ in range(80):
        node = [b"x", {}, node]
    memory = Sparse()
    memory.put(0x1000, fdt(node))
    follower = Follower(memory)
    assert follower.tree(0x1000) is None
    assert problems(follower) == [("budget", "fdt")]


def test_unknown_root_string() -> None:
    memory = Sparse()
    image = read_image(memory, kho_root(memory, bytes(32), b"kho-v9"))
    assert image.compatible == ""
    assert any("not any of the list" in p.message for p in image.problems)


def test_huge_counts_read_nothing() -> None:
    memory = EverySector(lambda pa: b"\xff" * 8)
    follower = Follower(memory)
    assert read_file(follower, b"iommufd-v1", 0x1000, Layouts()) is None
    assert read_flb(follower, b"pci-v1", 0x1000, Layouts(pci="pci-v1-c-2026-03")) is None
    assert problems(follower) == [("budget", "iommufd"), ("budget", "pci")]


def test_layout_that_does_not_exist() -> None:
    follower = Follower(Sparse())
    assert read_flb(follower, b"iommu-v1", 0x1000, Layouts(iommu="no-such")) is None
    assert read_flb(follower, b"pci", 0x1000, Layouts(pci="no-such")) is None
    assert read_file(follower, b"vfio-v1", 0x1000, Layouts(vfio="no-such")) is None
    assert read_file(follower, b"iommufd-v1", 0x1000, Layouts(iommufd="no-such")) is None
    assert {p.message for p in follower.problems} == {"unknown layout asked for"}


@pytest.mark.parametrize("interim", [False, True])
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_radix_round_trip(page_size: int, interim: bool) -> None:
    """Keys placed by the formula of the format come back as the blocks they stand for."""
    shift = page_size.bit_length() - 1
    table_bits, leaf_bits = shift - 3, shift + 3
    depth = {4096: 6, 16384: 4 if interim else 5, 65536: 4}[page_size]
    blocks = [(5 << shift, 0), (1 << (shift + 9), 9), (0, 3), (((1 << 40) >> 4) << 4, 4)]
    if interim and page_size == 16384:
        blocks = [b for b in blocks if b[1]]
    nodes: dict[tuple[int, int], dict[int, int]] = {}
    for pa, order in blocks:
        key = 1 << (64 - shift - order) | pa >> (shift + order)
        nodes.setdefault((0, key >> leaf_bits), {})[key % (1 << leaf_bits)] = 1
        prefix = key >> leaf_bits
        for level in range(1, depth):
            index = prefix % (1 << table_bits)
            prefix >>= table_bits
            nodes.setdefault((level, prefix), {})[index] = 1
    memory = Sparse()
    place = {node: (i + 1) << 20 for i, node in enumerate(nodes)}
    for (level, prefix), content in nodes.items():
        page = bytearray(page_size)
        for index in content:
            if level == 0:
                page[index // 8] |= 1 << index % 8
            else:
                child = place[level - 1, prefix << table_bits | index]
                page[index * 8 : index * 8 + 8] = u64(child)
        memory.put(place[level, prefix], bytes(page))
    follower = Follower(memory, page_size)
    found = list(follower.radix_blocks(place[depth - 1, 0], interim=interim))
    assert sorted(found) == sorted(blocks)
    assert follower.problems == []


class Damaged:
    """A capture with bytes changed in some of the places that the reader looks at."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.memory, self.rng = core(name), rng
        self.changed: dict[int, bytes] = {}

    def read(self, pa: int, size: int) -> bytes:
        data = self.changed.get(pa, b"")
        if len(data) < size:
            data = self.memory.read(pa, size)
            if self.rng.random() < 0.1:
                data = torture.mutate(data, self.rng).ljust(size, b"\0")
            self.changed[pa] = data
        return data[:size]


@pytest.mark.parametrize("name", ["iommu-vw-small_legacy-handoff", "linux-6.19.11-handoff"])
def test_damaged_captures(name: str) -> None:
    """Nothing in an image raises or takes long, and undamaged parts are still read."""
    kinds: set[str] = set()
    for seed in range(25):
        rng = random.Random(seed)
        limits = Limits(structures=5_000, entries=50_000)
        source = ImageReader(Damaged(name, rng), PAGE, LAYOUTS.get(name), limits)
        begin = time.process_time()
        image = source.image(root_address(name))
        for _ in source.blocks(image):
            pass
        assert time.process_time() - begin < 5
        kinds |= {p.kind for p in image.problems}
    assert kinds >= {"refused", "hole", "inconsistent"}
