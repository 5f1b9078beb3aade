"""Walkers of development handlers on bytes made by hand: all members, all anomalies."""

from __future__ import annotations

import struct

import hand_made as by_hand
import pytest
from hand_made import EMPTY, PAGE, Memory
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import registry
from abi.schema import resolve
from inspector.check import catalogue
from inspector.survey import Survey
from inspector.walk.folio_file import content, read_content
from inspector.walk.guest_memfd import walk_guest_memfd
from inspector.walk.hugetlb import walk_huge_memfd, walk_hugetlb
from inspector.walk.kvm import walk_vcpu, walk_vm
from inspector.walk.memfd import walk_memfd
from inspector.walk.tmpfs import walk_tmpfs_mount

GMEM = registry.get("guest-memfd", "guest-memfd-v1")
HUGETLB = registry.get("hugetlb", "hugetlb-v1")
EARLY = registry.get("hugetlb", "hugetlb-early")
KVM_MINIMAL = registry.get("kvm", "kvm-vm-v1-minimal")
KVM_ATTRIBUTES = registry.get("kvm", "kvm-guest-memfd-v1")
KVM_CARETAKER = registry.get("kvm", "kvm-caretaker")
TMPFS = registry.get("tmpfs", "tmpfs-mnt-v1")
MAX = (1 << 64) - 1


def codes(survey: Survey) -> set[str]:
    return {finding.code for finding in survey.findings.items}


def claimed(survey: Survey, kind: str) -> set[tuple[int, int]]:
    return {
        (start, size)
        for claim in survey.claims
        if claim.kind == kind
        for start, size in zip(claim.starts.tolist(), claim.sizes.tolist(), strict=True)
    }


def placed(survey: Survey) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in survey.placed:
        found.setdefault(one.struct.cname, []).extend(one.addresses.tolist())
    return found


# -- guest_memfd --------------------------------------------------------------------------------


def test_guest_memfd() -> None:
    memory = Memory()
    frames = memory.frames(5)
    for i, frame in enumerate(frames):
        memory.memory.write(frame * PAGE, bytes([i + 1]) * PAGE)
    listed = by_hand.folios((frame, i != 2, 3 * i) for i, frame in enumerate(frames))
    area = memory.vmalloc(listed)
    address = memory.page(by_hand.guest_memfd(13 * PAGE - 5, 2, 5, 0xFEDC, area))
    survey = memory.survey
    file = walk_guest_memfd(survey, GMEM, address, "/f", None)
    assert file is not None
    assert (file.size, file.flags, file.nr_folios, file.vm_token) == (13 * PAGE - 5, 2, 5, 0xFEDC)
    assert file.folios.pfn.tolist() == frames
    assert file.folios.index.tolist() == [0, 3, 6, 9, 12]
    assert (file.uptodate, file.vm, file.sized) == (4, None, False)
    assert codes(survey) == set()
    assert claimed(survey, "folio") == {(frame * PAGE, PAGE) for frame in frames}
    assert claimed(survey, "struct") == {(address, 48)}
    assert placed(survey)["guest_memfd_luo_ser"] == [address]
    data, missing = read_content(survey, file)
    assert missing == []
    wanted = b"".join(bytes([i + 1]) * PAGE + bytes(2 * PAGE) for i in range(5))[: file.size]
    assert data.tobytes() == wanted


def test_guest_memfd_that_is_wrong() -> None:
    memory = Memory()
    frames = memory.frames(3)
    listed = by_hand.folios([(frames[0], 1, 4), (frames[1], 1, 4), (frames[2], 6, MAX)])
    address = memory.page(by_hand.guest_memfd(2 * PAGE, 0x9, 4, 1, memory.vmalloc(listed)))
    survey = memory.survey
    file = walk_guest_memfd(survey, GMEM, address, "/f", None)
    assert file is not None
    # The array's page has room for the fourth entry: it is all zero, a hole.
    wanted = {"KHO-GMF-001", "KHO-GMF-002", "KHO-MFD-001", "KHO-MFD-002", "KHO-MFD-006"}
    assert codes(survey) == wanted
    assert all(piece.data is None for piece in content(survey, file))


# -- huge pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 4, 9])
def test_huge_memfd(order: int) -> None:
    memory = Memory()
    frames = memory.frames(3, order)
    size = PAGE << order
    for i, frame in enumerate(frames):
        memory.memory.write(frame * PAGE, bytes([i + 1]) * size)
    indices = [0, 1, 3]
    area = memory.vmalloc(by_hand.folios(zip(frames, [0] * 3, indices, strict=True)))
    address = memory.page(by_hand.huge_memfd(4 * size, 77, 3, area, order))
    survey = memory.survey
    file = walk_huge_memfd(survey, HUGETLB, address, "/f", None)
    assert file is not None
    assert (file.size, file.pos, file.order, file.nr_folios) == (4 * size, 77, order, 3)
    assert file.offsets.tolist() == [i * size for i in indices]
    assert file.sizes.tolist() == [size] * 3
    assert codes(survey) == set()
    assert claimed(survey, "folio") == {(frame * PAGE, size) for frame in frames}
    assert claimed(survey, "struct") == {(address, 41)}
    data, missing = read_content(survey, file)
    assert missing == []
    wanted = b"\1" * size + b"\2" * size + bytes(size) + b"\3" * size
    assert data.tobytes() == wanted


def test_huge_memfd_that_is_wrong() -> None:
    memory = Memory()
    frames = memory.frames(2, 4)
    far = 1 << 62  # times 16 pages: beyond 2^64
    area = memory.vmalloc(by_hand.folios([(frames[0], 0, 0), (frames[1], 3, far)]))
    address = memory.page(by_hand.huge_memfd(16 * PAGE, 0, 2, area, 4))
    survey = memory.survey
    file = walk_huge_memfd(survey, HUGETLB, address, "/f", None)
    assert file is not None
    assert file.offsets.tolist() == [0, MAX]
    assert codes(survey) == {"KHO-HTL-002", "KHO-MFD-002"}
    address = memory.page(by_hand.huge_memfd(PAGE, 0, 2, area, 200))
    survey = memory.survey
    file = walk_huge_memfd(survey, HUGETLB, address, "/f", None)
    assert file is not None
    assert (file.order, file.unit) == (200, 0)
    assert "KHO-HTL-001" in codes(survey)


def test_pools() -> None:
    memory = Memory()
    address = memory.page(by_hand.pools([(16, 9), (2, 18), (0, 4)]))
    survey = memory.survey
    found = walk_hugetlb(survey, HUGETLB, address, "/flb")
    assert found is not None
    assert [(p.nr_pages, p.order) for p in found.pools] == [(16, 9), (2, 18), (0, 4)]
    assert [p.address - address for p in found.pools] == [0, 9, 18]
    assert found.pool(18) is found.pools[1]
    assert found.pool(5) is None
    assert codes(survey) == set()
    assert claimed(survey, "struct") == {(address, 37)}


def test_pools_that_are_wrong() -> None:
    memory = Memory()
    address = memory.page(by_hand.pools([(1, 9), (2, 9), (3, 255), (MAX, 4)], 7))
    survey = memory.survey
    found = walk_hugetlb(survey, HUGETLB, address, "/flb")
    assert found is not None
    assert (found.nr_hstates, len(found.pools)) == (7, 4)
    assert codes(survey) == {"KHO-HTL-001", "KHO-HTL-003", "KHO-HTL-004"}


def test_pools_of_the_first_form() -> None:
    memory = Memory()
    huge, small = memory.frames(2, 9), memory.frames(700, 1)
    large = b"".join(struct.pack("<Q", f | (i & 1) << 52) for i, f in enumerate(huge))
    many = b"".join(struct.pack("<Q", f | (i % 3 == 0) << 52) for i, f in enumerate(small))
    address = memory.page(
        by_hand.early_pools([(2, 9, memory.vmalloc(large)), (700, 1, memory.vmalloc(many))])
    )
    survey = memory.survey
    found = walk_hugetlb(survey, EARLY, address, "/flb")
    assert found is not None
    first, second = found.pools
    assert (first.nr_pages, first.order, second.nr_pages, second.order) == (2, 9, 700, 1)
    assert first.pages is not None
    assert second.pages is not None
    assert first.pages.pfn.tolist() == huge
    assert first.pages.free.tolist() == [False, True]
    assert second.pages.pfn.tolist() == small
    assert int(second.pages.free.sum()) == 234
    assert (first.pages.complete, second.pages.complete) == (True, True)
    assert codes(survey) == set()
    wanted = {(f * PAGE, PAGE << 9) for f in huge} | {(f * PAGE, PAGE << 1) for f in small}
    assert claimed(survey, "folio") == wanted


def test_pools_of_the_first_form_that_are_wrong() -> None:
    memory = Memory()
    area = memory.vmalloc(struct.pack("<Q", 5 | 3 << 53))
    address = memory.page(by_hand.early_pools([(MAX, 9, area)]))
    survey = memory.survey
    found = walk_hugetlb(survey, EARLY, address, "/flb")
    assert found is not None
    assert found.pools[0].pages is not None
    assert len(found.pools[0].pages.pfn) == PAGE // 8
    assert codes(survey) == {"KHO-HTL-002", "KHO-HTL-005"}


def test_a_pool_whose_array_the_dump_left_out_is_not_said_to_be_short() -> None:
    memory = Memory()
    small = memory.frames(700, 1)
    area = memory.vmalloc(b"".join(struct.pack("<Q", f) for f in small))
    address = memory.page(by_hand.early_pools([(700, 1, area)]))
    whole = walk_hugetlb(memory.survey, EARLY, address, "/flb")
    assert whole is not None
    assert whole.pools[0].pages is not None
    memory.memory.exclude(int(whole.pools[0].pages.vmalloc.blocks[1]), PAGE)
    survey = Survey(memory.memory, PAGE)
    found = walk_hugetlb(survey, EARLY, address, "/flb")
    assert found is not None
    assert found.pools[0].pages is not None
    assert not found.pools[0].pages.complete
    assert codes(survey) == {"KHO-MEM-001"}


# -- KVM ----------------------------------------------------------------------------------------


def test_vm_with_attributes() -> None:
    memory = Memory()
    rows = [(0x100 + i, 8) for i in range(400)] + [(0x1000, 8), (0x1001, 1)]
    area = memory.vmalloc(b"".join(struct.pack("<QQ", *row) for row in rows))
    address = memory.page(by_hand.vm_with_attributes(3, len(rows), area))
    survey = memory.survey
    vm = walk_vm(survey, KVM_ATTRIBUTES, address, "/vm", None)
    assert vm is not None
    assert vm.type == 3
    assert vm.attributes is not None
    assert vm.attributes.gfn.tolist() == [gfn for gfn, _ in rows]
    assert vm.attributes.attributes.tolist() == [value for _, value in rows]
    runs = [column.tolist() for column in vm.attributes.runs()]
    assert runs == [[0x100, 0x1000, 0x1001], [400, 1, 1], [8, 8, 1]]
    assert vm.complete
    assert codes(survey) == set()
    assert claimed(survey, "struct") == {(address, 32)}


def test_vm_with_attributes_that_is_wrong() -> None:
    memory = Memory()
    area = memory.vmalloc(struct.pack("<QQQQ", 5, 8, 5, 8))
    address = memory.page(by_hand.vm_with_attributes(0, MAX, area))
    survey = memory.survey
    vm = walk_vm(survey, KVM_ATTRIBUTES, address, "/vm", None)
    assert vm is not None
    assert vm.attributes is not None
    assert not vm.complete
    assert len(vm.attributes.gfn) == PAGE // 16
    assert codes(survey) == {"KHO-KVM-001", "KHO-KVM-002"}


def test_vm_with_folios() -> None:
    memory = Memory()
    folios = [frame * PAGE for frame in memory.frames(600)]
    listed = memory.page(by_hand.folio_list(folios), order=1)
    address = memory.page(by_hand.vm_with_folios(1, listed))
    survey = memory.survey
    vm = walk_vm(survey, KVM_CARETAKER, address, "/vm", None)
    assert vm is not None
    assert vm.folios is not None
    assert (vm.type, vm.folios_pa, vm.folios.count) == (1, listed, 600)
    assert vm.folios.folios.tolist() == folios
    assert vm.complete
    assert codes(survey) == set()
    assert claimed(survey, "struct") == {(address, 16), (listed, 8 + 600 * 8)}
    assert claimed(survey, "folio") == {(pa, PAGE) for pa in folios}


def test_vm_with_folios_that_is_wrong() -> None:
    memory = Memory(pages=64)
    listed = memory.page(by_hand.folio_list([5, 1 << 60, 0, 16 * PAGE], MAX))
    address = memory.page(by_hand.vm_with_folios(1, listed))
    survey = memory.survey
    vm = walk_vm(survey, KVM_CARETAKER, address, "/vm", None)
    assert vm is not None
    assert vm.folios is not None
    assert not vm.complete
    assert codes(survey) == {"KHO-KVM-003", "KHO-MEM-001"}
    assert claimed(survey, "folio") == {(16 * PAGE, PAGE)}
    # A list that leads to itself, or is another machine's, is used once.
    again = walk_vm(survey, KVM_CARETAKER, address, "/other", None)
    assert again is not None
    assert again.folios is None
    assert not again.complete
    assert "KHO-LST-002" in codes(survey)


def test_minimal_vm() -> None:
    memory = Memory()
    address = memory.page(by_hand.vm_minimal(0xABCDEF))
    survey = memory.survey
    vm = walk_vm(survey, KVM_MINIMAL, address, "/vm", None)
    assert vm is not None
    assert (vm.type, vm.attributes, vm.folios_pa, vm.folios) == (0xABCDEF, None, None, None)
    assert claimed(survey, "struct") == {(address, 8)}


def test_vcpu() -> None:
    memory = Memory()
    state, numbers = memory.page(b"registers"), (1000, 20, 3, 48, 0xFFFF, 5, 0xAAAA)
    telemetry = memory.page(struct.pack("<7Q", *numbers))
    control = memory.page(by_hand.control_block(2, 0xFFFFFFFF, 7, telemetry))
    address = memory.page(by_hand.vcpu(7, 1, 0x10, state, control))
    survey = memory.survey
    vcpu = walk_vcpu(survey, KVM_CARETAKER, address, "/vcpu", None)
    assert vcpu is not None
    assert (vcpu.vcpu_id, vcpu.flags, vcpu.vm_token, vcpu.arch_state) == (7, 1, 0x10, state)
    assert vcpu.caretaker
    assert vcpu.control is not None
    assert vcpu.control.state_name == "stopping"
    assert (vcpu.control.pcpu_id, vcpu.control.vcpu_id) == (0xFFFFFFFF, 7)
    assert vcpu.control.telemetry == {
        "total_runs": 1000, "total_exits": 20, "stall_count": 3, "last_exit_reason": 48,
        "last_exit_rip": 0xFFFF, "stall_exit_reason": 5, "stall_exit_rip": 0xAAAA,
    }  # fmt: skip
    assert codes(survey) == set()
    assert claimed(survey, "struct") == {(address, 32), (control, 24), (telemetry, 56)}
    assert claimed(survey, "guest-state") == {(state, PAGE)}


def test_vcpu_that_is_wrong() -> None:
    memory = Memory()
    control = memory.page(by_hand.control_block(4, 0, 8, 3, 9))
    address = memory.page(by_hand.vcpu(7, 0x80000000, 0x10, 0, control))
    survey = memory.survey
    vcpu = walk_vcpu(survey, KVM_CARETAKER, address, "/vcpu", None)
    assert vcpu is not None
    assert vcpu.control is not None
    assert vcpu.control.state_name == "4"
    assert vcpu.control.telemetry is None
    assert codes(survey) == {
        "KHO-KVM-010", "KHO-KVM-011", "KHO-KVM-012", "KHO-KVM-013", "KHO-KVM-014", "KHO-MEM-004",
    }  # fmt: skip
    address = memory.page(by_hand.vcpu(7, 1, 0x10, control, 0))
    survey = memory.survey
    vcpu = walk_vcpu(survey, KVM_CARETAKER, address, "/vcpu", None)
    assert vcpu is not None
    assert vcpu.control is None
    assert codes(survey) == {"KHO-KVM-015"}


# -- tmpfs --------------------------------------------------------------------------------------


def test_mount() -> None:
    memory = Memory()
    address = memory.page(by_hand.mount(512, 0o1777, 5))
    survey = memory.survey
    found = walk_tmpfs_mount(survey, TMPFS, address, "/m")
    assert found is not None
    assert (found.max_blocks, found.mode, found.flags) == (512, 0o1777, 5)
    assert found.limit == 2 << 20
    assert codes(survey) == set()
    assert claimed(survey, "struct") == {(address, 16)}
    address = memory.page(by_hand.mount(MAX, 0o100644, 0))
    survey = memory.survey
    assert walk_tmpfs_mount(survey, TMPFS, address, "/m") is not None
    assert codes(survey) == {"KHO-TMP-001"}


# -- whatever the bytes -------------------------------------------------------------------------

WALKERS = {
    "guest-memfd": lambda s, a: walk_guest_memfd(s, GMEM, a, "/x", None),
    "huge-memfd": lambda s, a: walk_huge_memfd(s, HUGETLB, a, "/x", None),
    "memfd": lambda s, a: walk_memfd(s, registry.get("memfd", "memfd-v2"), a, "/x", None),
    "pools": lambda s, a: walk_hugetlb(s, HUGETLB, a, "/x"),
    "early-pools": lambda s, a: walk_hugetlb(s, EARLY, a, "/x"),
    "vm-minimal": lambda s, a: walk_vm(s, KVM_MINIMAL, a, "/x", None),
    "vm-attributes": lambda s, a: walk_vm(s, KVM_ATTRIBUTES, a, "/x", None),
    "vm-folios": lambda s, a: walk_vm(s, KVM_CARETAKER, a, "/x", None),
    "vcpu": lambda s, a: walk_vcpu(s, KVM_CARETAKER, a, "/x", None),
    "tmpfs": lambda s, a: walk_tmpfs_mount(s, TMPFS, a, "/x"),
}

pages = st.integers(1, 40).map(lambda n: n * PAGE)
words = st.one_of(
    st.integers(0, 8),
    pages,
    st.sampled_from(
        [MAX, MAX - 1, 1 << 63, 1 << 52, (1 << 52) - PAGE, 1 << 32, 0x14_0001_FFFF_FFFF]
    ),
    st.integers(0, MAX),
)


@settings(max_examples=60)
@pytest.mark.parametrize("name", WALKERS)
@given(
    content=st.lists(st.lists(words, min_size=1, max_size=20), min_size=1, max_size=12),
    address=st.one_of(pages, words),
)
def test_any_bytes(name: str, content: list[list[int]], address: int) -> None:
    """Pages that point to each other in any way: no exception, and only codes with a rule."""
    memory = Memory(pages=48)
    for i, words in enumerate(content):
        memory.memory.write((i + 1) * PAGE, struct.pack(f"<{len(words)}Q", *words))
    survey = memory.survey
    WALKERS[name](survey, address)
    assert codes(survey) <= catalogue().keys()
    for claim in survey.claims:
        assert len(claim.starts) == len(claim.sizes)


@pytest.mark.parametrize(
    "name", ["guest-memfd", "memfd", "huge-memfd", "early-pools", "vm-attributes"]
)
def test_large_blocks_that_are_not_there(name: str) -> None:
    """511 blocks of 4 GiB and a count to match: nothing is allocated for what no image has."""
    memory = Memory()
    chunk = memory.page(struct.pack("<512Q", 0, *(i << 32 for i in range(1, 512))))
    area = struct.pack("<QIHH", chunk, 0xFFFFFFFF, 1, 20)
    raw = {
        "guest-memfd": by_hand.guest_memfd(MAX, 0, MAX, 0, area),
        "memfd": struct.pack("<QQIIQ", 0, MAX, 0, 0, MAX) + area,
        "huge-memfd": by_hand.huge_memfd(MAX, 0, MAX, area, 9),
        "early-pools": by_hand.early_pools([(MAX, 9, area)]),
        "vm-attributes": by_hand.vm_with_attributes(0, MAX, area),
    }[name]
    survey = memory.survey
    assert WALKERS[name](survey, memory.page(raw)) is not None
    assert "KHO-MEM-002" in codes(survey)


def test_sizes_are_those_of_the_bytes_made_here() -> None:
    """The hand-made bytes and the declarations have the same sizes, and page size is no matter."""
    sizes = {
        "guest_memfd_luo_ser": (GMEM, len(by_hand.guest_memfd(0, 0, 0, 0, EMPTY))),
        "hugemfd_ser": (HUGETLB, len(by_hand.huge_memfd(0, 0, 0, EMPTY, 0))),
        "hugetlb_ser": (HUGETLB, len(by_hand.pools([]))),
        "kvm_luo_ser": (KVM_ATTRIBUTES, len(by_hand.vm_with_attributes(0, 0, EMPTY))),
        "kvm_vcpu_ser": (KVM_CARETAKER, len(by_hand.vcpu(0, 0, 0, 0, 0))),
        "kvm_caretaker_cb_ser": (KVM_CARETAKER, len(by_hand.control_block(0, 0, 0, 0))),
        "tmpfs_luo_mnt_ser": (TMPFS, len(by_hand.mount(0, 0, 0))),
    }
    for name, (generation, size) in sizes.items():
        for page in (4096, 16384, 65536):
            assert resolve(generation.layouts[name], page).size == size
    assert resolve(EARLY.layouts["hugetlb_ser"], 4096).size == len(by_hand.early_pools([]))
