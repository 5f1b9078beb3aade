"""I/O page tables, iommufd, IOMMU core, VT-d, SMMUv3, PCI and VFIO on the producer's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.pagetable import READ_WRITE, Permission
from inspector import image as decoded_image
from inspector import pagetable
from inspector.kernel import scenario
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import GiB, Machine, small_machine
from inspector.kernel.machine.hardware import Hardware, PciDevice, Unit, UnitType, parse_bdf
from inspector.kernel.outgoing.iommu_drivers import stage_2
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.iopt import PageTable
from inspector.kernel.outgoing.kernel import Image, Kernel
from inspector.kernel.outgoing.memfd import DMA_SEALS, Memfd

CORPUS = Path(__file__).parent.parent.parent / "corpus"
BASE = 0xFED90000


def machine(page_size: int = 4096) -> Machine:
    architecture = "x86_64" if page_size == 4096 else "aarch64"
    return Machine(
        small_machine(4 * GiB, page_size=page_size, architecture=architecture),
        scratch_align=512 << 20,
    )


# -- page tables -------------------------------------------------------------------------------

FORMATS = {
    "vtdss": (4096, 4, 48),
    "x86-64": (4096, 4, 48),
    "amdv1": (4096, 3, 39),
    "riscv-sv39": (4096, 3, 39),
    "lpae-s2-4k": (4096, 4, 44),
    "lpae-s2-16k": (0x4000, 3, 44),
    "lpae-s2-64k": (0x10000, 3, 44),
}


def known_formats() -> list[str]:
    from abi.pagetable import FORMATS as every

    return [name for name in FORMATS if name in every]


@pytest.mark.parametrize("name", known_formats())
@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["map", "map", "scatter", "unmap"]),
            st.integers(0, 1 << 11),
            st.integers(0, 1 << 14),
            st.integers(1, 1500),
            st.sampled_from([READ_WRITE, Permission.READ]),
        ),
        max_size=10,
    )
)
def test_tables_hold_what_was_mapped(
    name: str, operations: list[tuple[str, int, int, int, Permission]]
) -> None:
    page, levels, bits = FORMATS[name]
    host = machine(page)
    before = host.pages_out
    table = PageTable(host, name, levels, bits)
    model: dict[int, tuple[int, Permission]] = {}
    for kind, iova, pa, count, permissions in operations:
        pages = range(iova, iova + count)
        if kind == "unmap":
            # Whole leaves only: take the model's word for where that holds.
            model = {k: v for k, v in model.items() if k not in pages}
            try:
                table.unmap(iova * page, count * page)
            except KernelErrno as error:
                assert error.name == "EINVAL"
                return
            continue
        if any(p in model for p in pages):
            continue
        if kind == "map":
            table.map(iova * page, pa * page, count * page, permissions)
            model |= {iova + i: (pa + i, permissions) for i in range(count)}
        else:
            frames = np.arange(count, dtype=np.uint64) * np.uint64(3) + np.uint64(pa)
            iovas = np.arange(iova, iova + count, dtype=np.uint64)
            table.map_scattered(iovas * np.uint64(page), frames * np.uint64(page), permissions)
            model |= {iova + i: (pa + 3 * i, permissions) for i in range(count)}
    table.sync()
    assert table.pages_mapped == len(model)
    walk = pagetable.walk(host.memory, name, table.top, levels, vasz=bits)
    found: dict[int, int] = {}
    for chunk in walk.ranges():
        for start, to, size in zip(chunk.iova, chunk.pa, chunk.size, strict=True):
            found |= {
                (int(start) + at) // page: (int(to) + at) // page
                for at in range(0, int(size), page)
            }
    assert found == {k: v[0] for k, v in model.items()}
    assert not walk.findings.items
    assert sorted(walk.table_pages.tolist()) == sorted(pa for pa, _ in table.tables())
    table.free()
    assert host.pages_out == before


def test_largest_leaves_that_fit() -> None:
    host = machine()
    table = PageTable(host, "vtdss", 4, 48)
    table.map(GiB - (2 << 20) - 4096, 3 * GiB - (2 << 20) - 4096, GiB + (4 << 20), READ_WRITE)
    table.sync()
    walk = pagetable.walk(host.memory, "vtdss", table.top, 4)
    sizes = [int(s) for chunk in walk.leaves() for s in chunk.size]
    rest = [4096] * ((2 << 20) // 4096 - 1)
    assert sizes == [4096, 2 << 20, GiB, *rest]


def test_leaves_that_the_hardware_does_not_know_are_not_used() -> None:
    for known, sizes in (((), {4096}), ((2 << 20,), {2 << 20})):
        table = PageTable(machine(), "vtdss", 4, 48, known)
        table.map(GiB, GiB, GiB, READ_WRITE)
        table.sync()
        walk = pagetable.walk(table.machine.memory, "vtdss", table.top, 4)
        assert {int(s) for chunk in walk.leaves() for s in chunk.size} == sizes


def test_ranges_that_cannot_be_mapped() -> None:
    table = PageTable(machine(), "vtdss", 3, 39)
    for iova, size, error in ((5, 4096, "EINVAL"), (0, 0, "EINVAL"), (1 << 39, 4096, "ERANGE")):
        with pytest.raises(KernelErrno, match=error):
            table.map(iova, 0, size, READ_WRITE)
    table.map(0x200000, 0x200000, 0x200000, READ_WRITE)
    with pytest.raises(KernelErrno, match="EEXIST"):
        table.map(0x201000, 0, 4096, READ_WRITE)
    with pytest.raises(KernelErrno, match="EINVAL"):
        table.unmap(0x201000, 4096)


def truth(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CORPUS / f"{name}-handoff.truth.json").read_text())
    return document


def number(value: object) -> int:
    return int(value, 16) if isinstance(value, str) else int(value)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["iommu-vw-small_legacy", "iommu-v3-small_scalable"])
def test_real_mappings_give_the_real_tables(name: str) -> None:
    """The mappings that user space made on a real machine, leaf by leaf, entry by entry."""
    known = truth(name)
    for check in known["mapping_check"]:
        domain = next(d for d in known["iommu_flb"]["domains"] if d["pa"] == check["domain"])
        owner = next(i for i, s in enumerate(known["sessions"], 1) if s["name"] == check["session"])
        table = PageTable(machine(), "vtdss", number(domain["top_level"]) + 1, 48)
        pieces = [
            m for m in known["mappings"] if m["iommufd"] == owner and m["ioas"] == check["ioas"]
        ]
        for m in _joined(pieces):
            permissions = Permission(("r" in m[3]) * 1 | ("w" in m[3]) * 2)
            table.map(m[0], m[1], m[2], permissions)
        for m in known["unmapped"]:
            if m["iommufd"] == owner and m["ioas"] == check["ioas"]:
                table.unmap(number(m["iova"]), number(m["len"]))
        table.sync()
        walk = pagetable.walk(table.machine.memory, "vtdss", table.top, table.levels)
        ours = [
            (int(v), int(p), int(s))
            for chunk in walk.leaves()
            for v, p, s in zip(chunk.iova, chunk.pa, chunk.size, strict=True)
        ]
        theirs = sorted((number(v), number(p), number(s)) for v, p, s, _ in domain["leaves"])
        assert ours == theirs
        assert table.table_count == domain["tables"]
        words = {number(v): number(w) for v, _, _, w in domain["leaves"]}
        for chunk in walk.leaves():
            for iova, word in zip(chunk.iova, chunk.entry, strict=True):
                assert int(word) == words[int(iova)]


def _joined(pieces: list[dict[str, Any]]) -> list[tuple[int, int, int, str]]:
    """Mappings as the kernel batches them: neighbours of one ioctl, physically contiguous."""
    out: list[tuple[int, int, int, str]] = []
    for m in pieces:
        iova, pa, size = number(m["iova"]), number(m["pa"]), number(m["len"])
        out.append((iova, pa, size, m["flags"]))
    return out


# -- the whole stack -----------------------------------------------------------------------------


def test_the_shipped_scenario_repeats_a_real_machine() -> None:
    """Field by field, but for addresses."""
    known = truth("iommu-vw-small_legacy")
    image = scenario.load("iommufd").run()
    with decoded_image.open(image.memory) as found:
        assert not found.findings
        assert found.luo is not None
        for ours, theirs in zip(found.luo.sessions, known["sessions"], strict=True):
            assert ours.name == theirs["name"].encode()
            assert [(f.compatible.decode(), f.token) for f in ours.files] == [
                (f["handler"], number(f["token"])) for f in theirs["files"]
            ]
            for file, real in zip(ours.files, theirs["files"], strict=True):
                if "hwpts" in real:
                    assert [h.token for h in file.state.hwpts] == [
                        number(h["token"]) for h in real["hwpts"]
                    ]
                if "ser" in real:
                    assert file.state.bdf == real["ser"]["bdf"]
        assert [(f.name.decode(), f.count) for f in found.luo.flbs] == [
            (f["name"], f["count"]) for f in known["flbs"]
        ]
    _compare_objects(image, known)


def _compare_objects(image: Image, known: dict[str, Any]) -> None:
    kernel, memory = image.kernel, image.memory
    flb = kernel.iommu
    assert flb is not None
    assert flb.generation.flb is not None
    real = known["iommu_flb"]
    root = flb.generation.flb.unpack(memory.read(flb.root, flb.generation.flb.size))
    assert root["version"] == number(real["version"])
    slots: dict[str, dict[int, int]] = {}
    for array, name in ((flb.units, "hw"), (flb.domains, "domains"), (flb.devices, "devices")):
        page = array.kind.page.unpack(memory.read(array.first, 16))
        assert [page[array.kind.count]] == [
            p["nr_objects"] for p in real[f"{name.rstrip('s')}_pages"]
        ]
        assert array.capacity == real[f"{name.rstrip('s')}_pages"][0]["max"]
        slots[name] = {array.address(i): i for i in range(array.count)}
        real_slots = {number(o["pa"]): i for i, o in enumerate(real[name])}
        for i, theirs in enumerate(real[name]):
            data = memory.read(array.address(i), array.objects.size)
            ours = (
                array.objects.unpack(data, 0, "intel")
                if name != "domains"
                else (array.objects.unpack(data))
            )
            for key, value in theirs.items():
                if key in ours and key not in POINTERS and isinstance(ours[key], int):
                    assert ours[key] == number(value), (name, i, key)
            if name == "hw":
                bitmap = ours["intel.context_tables_bitmap"][0]
                assert bitmap == number(theirs["context_tables_bitmap"])
            for key, target in (("domain_phys", "domains"), ("iommu_phys", "hw")):
                if key in theirs:
                    their_index = {number(o["pa"]): j for j, o in enumerate(real[target])}[
                        number(theirs[key])
                    ]
                    assert slots[target][ours[key]] == their_index
        assert len(real_slots) == array.count
    pci = kernel.pci
    assert pci is not None
    assert [(s, b, c) for s, b, c in pci.slots] == [
        (e["domain"], e["bdf"], e["refcount"]) for e in known["pci"]["entries"]
    ]
    _compare_context(kernel, known)


POINTERS = {"domain_phys", "iommu_phys", "top_table_phys", "intel.root_table", "pa"}


def _compare_context(kernel: Kernel, known: dict[str, Any]) -> None:
    assert kernel.drivers is not None
    driver: Any = kernel.drivers.of(BASE)
    for text, entry in known["context"].items():
        device = kernel.machine.spec.hardware.device(*parse_bdf(text))
        assert device is not None
        at = driver.entry_address(device)
        low, high = (kernel.machine.memory.u64(at), kernel.machine.memory.u64(at + 8))
        domain = driver.attached[device.key]
        assert low == domain.table.top | (number(entry["lo"]) & 0xFFF)
        assert high == number(entry["hi"])


SERIES = (
    "linux-6.19+iommu-rfc-v2",
    "linux-6.19+iommu-v1",
    "linux-7.1+iommu=iommu-v1-2026-02-partial+iommufd=iommufd-13+vfio-pci=vfio-pci-v1-reset",
    "linux-7.1+iommu-v2",
    "linux-7.1+iommu=iommu-v3-2026-06-base+iommufd=iommufd-24+vfio-pci=vfio-pci-v2",
    "linux-7.1+iommu-v3",
    "linux-7.2+iommu-smmuv3",
    "linux-7.3+iommu-vw",
    "linux-7.3+iommu=iommu-v4-version-field-base+iommufd=iommufd-24+vfio-pci=vfio-pci-v2",
)


def hardware(units: int = 1, devices: int = 8, **unit: Any) -> Hardware:
    return Hardware(
        tuple(Unit(base=BASE + 0x1000 * i, **unit) for i in range(units)),
        tuple(
            PciDevice(bdf=0x18 + 8 * i, unit=BASE + 0x1000 * (i % units)) for i in range(devices)
        ),
    )


def stack(name: str = "linux-7.3+iommu-vw", **more: Any) -> tuple[Kernel, Iommufd, Memfd]:
    kernel = Kernel(name, small_machine(2 * GiB, hardware=hardware(**more)))
    file = kernel.memfd("ram")
    file.truncate(1 << 20)
    file.add_seals(DMA_SEALS)
    return kernel, kernel.iommufd(), file


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("scalable", [False, True])
def test_every_series_is_decoded_as_meant(name: str, scalable: bool) -> None:
    kernel, iommufd, file = stack(name, scalable=scalable, units=2, devices=6)
    session = kernel.luo.create_session("vm")
    devices = kernel.machine.spec.hardware.devices
    spaces = [iommufd.ioas_alloc() for _ in range(3)]
    hwpts = []
    for i, space in enumerate(spaces):
        space.map_file(file, 0, 0x100000 * (i + 1), 0x40000)
        hwpt = iommufd.hwpt_alloc(kernel.machine.spec.hardware.units[i % 2], space)
        iommufd.mark(hwpt, 0x50 + i)
        hwpts.append(hwpt)
    session.preserve(file, 1)
    session.preserve(iommufd, 2)
    for i, device in enumerate(devices):
        iommufd.attach(device, hwpts[i % 2])
        session.preserve(kernel.vfio(0, device.bdf, iommufd), 10 + i)
    image = kernel.kexec()
    overrides = {layer: kernel.profile[layer] for layer in ("iommu", "iommufd", "vfio-pci")}
    with decoded_image.open(image.memory, overrides=overrides) as found:
        assert not [f for f in found.findings if f.code.startswith("KHO-MAP")]
        assert found.luo is not None
        flb = next(f for f in found.luo.flbs if f.name.startswith(b"iommu"))
        state = flb.state
        assert [d.devid for d in state.devices] == [d.bdf for d in devices]
        assert len(state.domains) == 3
        assert [u.ref_count for u in state.units] == [3, 3]
        assert flb.count == 1
        assert kernel.iommu is not None
        for i, device in enumerate(state.devices):
            assert device.get("domain_phys") == hwpts[i % 2].domain.ser
        for domain, hwpt in zip(state.domains, hwpts, strict=True):
            assert domain.top_table_phys == hwpt.domain.table.top
    for hwpt in hwpts:
        for pa, order in hwpt.domain.table.tables():
            assert kernel.kho.map.has(pa >> 12, order)


def test_errors_of_iommufd() -> None:
    kernel, iommufd, file = stack()
    unit, device = kernel.machine.spec.hardware.units[0], kernel.machine.spec.hardware.devices[0]
    session = kernel.luo.create_session("vm")
    space = iommufd.ioas_alloc()
    hwpt = iommufd.hwpt_alloc(unit, space)
    space.map_file(file, 0, 0, 4096)
    for offset, iova, size, error in (
        (0, 0, 4096, "EEXIST"),
        (1 << 20, 1 << 20, 4096, "EINVAL"),
        (0, 0x20005, 4096, "EINVAL"),
        (0, 1 << 48, 4096, "ERANGE"),
    ):
        with pytest.raises(KernelErrno, match=error):
            space.map_file(file, offset, iova, size)
    space.map_file(file, 0, 0x10000, 0x4000)
    with pytest.raises(KernelErrno, match="ENOENT"):
        space.unmap(0x11000, 4096)
    iommufd.mark(hwpt, 7)
    for again in (7,):
        with pytest.raises(KernelErrno, match="EADDRINUSE"):
            iommufd.mark(hwpt, again)
    with pytest.raises(KernelErrno, match="EINVAL"):  # the file is not preserved
        session.preserve(iommufd, 2)
    session.preserve(file, 1)
    vfio = kernel.vfio(0, device.bdf, iommufd)
    with pytest.raises(KernelErrno, match="EINVAL"):  # the iommufd is not preserved
        session.preserve(vfio, 3)
    session.preserve(iommufd, 2)
    with pytest.raises(KernelErrno, match="EINVAL"):  # not attached
        session.preserve(vfio, 3)
    with pytest.raises(KernelErrno, match="EBUSY"):
        space.map_file(file, 0, 0x90000, 4096)
    with pytest.raises(KernelErrno, match="EBUSY"):
        space.unmap(0, 4096)
    with pytest.raises(KernelErrno, match="EBUSY"):
        iommufd.destroy(hwpt)
    unmarked = iommufd.hwpt_alloc(unit, iommufd.ioas_alloc())
    iommufd.attach(device, unmarked)
    with pytest.raises(KernelErrno, match="EINVAL"):  # its domain is not preserved
        session.preserve(vfio, 3)
    iommufd.attach(device, hwpt)
    session.preserve(vfio, 3)
    with pytest.raises(KernelErrno, match="EBUSY"):
        iommufd.attach(device, unmarked)
    with pytest.raises(KernelErrno, match="EBUSY"):
        iommufd.detach(device)
    iommufd.destroy(unmarked)


def test_nested_page_tables() -> None:
    kernel, iommufd, _ = stack(scalable=True)
    unit = kernel.machine.spec.hardware.units[0]
    parent = iommufd.hwpt_alloc(unit, iommufd.ioas_alloc())
    nested = iommufd.hwpt_alloc(unit, parent=parent)
    with pytest.raises(KernelErrno, match="EINVAL"):
        iommufd.mark(nested, 1)
    with pytest.raises(KernelErrno, match="EINVAL"):
        iommufd.hwpt_alloc(unit, parent=nested)
    with pytest.raises(KernelErrno, match="EBUSY"):
        iommufd.destroy(parent)
    iommufd.destroy(nested)
    iommufd.destroy(parent)


def test_mappings_without_a_file_or_seals_cannot_be_preserved() -> None:
    kernel, iommufd, _ = stack()
    unit = kernel.machine.spec.hardware.units[0]
    session = kernel.luo.create_session("vm")
    space = iommufd.ioas_alloc()
    iommufd.mark(iommufd.hwpt_alloc(unit, space), 1)
    space.map_user(0xFE000000, 0, 4096)
    with pytest.raises(KernelErrno, match="EINVAL"):
        session.preserve(iommufd, 2)
    assert kernel.iommu is not None
    assert kernel.iommu.count == 0  # the whole FLB was made and freed again
    space.unmap(0, 4096)
    loose = kernel.memfd("loose")
    loose.truncate(4096)
    space.map_file(loose, 0, 0, 4096)
    session.preserve(loose, 3)
    with pytest.raises(KernelErrno, match="EINVAL"):
        session.preserve(iommufd, 2)


def test_unpreserved_objects_keep_their_slots() -> None:
    kernel, keeper, _ = stack(devices=4)
    units, devices = kernel.machine.spec.hardware.units, kernel.machine.spec.hardware.devices
    kept = kernel.luo.create_session("kept")
    kept.preserve(keeper, 1)
    flb = kernel.iommu
    assert flb is not None
    for round_ in range(3):
        session = kernel.luo.create_session(f"round{round_}")
        iommufd = kernel.iommufd()
        space = iommufd.ioas_alloc()
        hwpt = iommufd.hwpt_alloc(units[0], space)
        iommufd.mark(hwpt, 1)
        session.preserve(iommufd, 1)
        iommufd.attach(devices[0], hwpt)
        session.preserve(kernel.vfio(0, devices[0].bdf, iommufd), 2)
        session.close()
        iommufd.detach(devices[0])
        iommufd.destroy(hwpt)
    assert (flb.units.count, flb.domains.count, flb.devices.count) == (3, 3, 3)
    image = kernel.kexec()
    for array, users, pointer in (
        (flb.units, 0, None),
        (flb.domains, 1, "top_table_phys"),
        (flb.devices, 1, "domain_phys"),
    ):
        for i in range(3):
            data = image.memory.read(array.address(i), array.objects.size)
            values = array.objects.unpack(data)
            assert (values["ref_count"], values["flags"]) == (users, 1)
            if pointer:
                assert values[pointer]
    unit = flb.units.objects.unpack(
        image.memory.read(flb.units.address(0), flb.units.objects.size), 0, "intel"
    )
    assert not any(unit["intel.context_tables_bitmap"])


def test_arrays_overflow_into_further_pages() -> None:
    kernel, iommufd, _ = stack()
    unit = kernel.machine.spec.hardware.units[0]
    session = kernel.luo.create_session("vm")
    space = iommufd.ioas_alloc()
    for i in range(250):
        iommufd.mark(iommufd.hwpt_alloc(unit, space), i)
    session.preserve(iommufd, 1)
    image = kernel.kexec()
    assert kernel.iommu is not None
    array, counts, page = kernel.iommu.domains, [], kernel.iommu.domains.first
    while page:
        head = array.kind.page.unpack(image.memory.read(page, 16))
        counts.append(head["nr_objects"])
        page = head["next_array_phys"]
    assert counts == [102, 102, 46]
    assert kernel.kho.order_of(next(iter(session.files.values())).data) == 1


def test_pci_devices_that_cannot_be_preserved() -> None:
    devices = (
        PciDevice(bdf=8, unit=0, virtual_function=True),
        PciDevice(bdf=16, unit=0, quirk=True),
        PciDevice(bdf=24, unit=0, display=True),
        PciDevice(bdf=32, unit=0, driver="nvme"),
        PciDevice(bdf=40, unit=0, bridges=(0,)),
    )
    kernel = Kernel("linux-7.3+iommu-vw", small_machine(hardware=Hardware((), devices)))
    session = kernel.luo.create_session("vm")
    for device in devices:
        with pytest.raises(KernelErrno, match="EINVAL"):
            session.preserve(kernel.vfio(0, device.bdf), device.bdf)
    assert kernel.pci is not None
    assert kernel.pci.count == 0
    group = kernel.vfio(0, 8)
    group.cdev = False
    with pytest.raises(KernelErrno, match="ENOENT"):
        session.preserve(group, 99)


def test_bridges_count_the_endpoints_below() -> None:
    devices = tuple(PciDevice(bdf=0x100 + 8 * i, bridges=(0x10, 0x08)) for i in range(3))
    kernel = Kernel(
        "linux-7.3+pci=pci-flb-version2-2026+vfio-pci=vfio-pci-v2",
        small_machine(hardware=Hardware((), devices)),
    )
    session = kernel.luo.create_session("vm")
    for device in devices:
        session.preserve(kernel.vfio(0, device.bdf), device.bdf)
    assert kernel.pci is not None
    assert sorted(kernel.pci.slots) == [
        [0, 0x08, 3], [0, 0x10, 3], [0, 0x100, 1], [0, 0x108, 1], [0, 0x110, 1],
    ]  # fmt: skip
    with decoded_image.open(kernel.kexec().memory) as found:
        assert found.luo is not None
        state = next(f for f in found.luo.flbs if f.name == b"pci").state
        assert state.nr_devices == 5


def test_interrupts_must_be_off_at_freeze() -> None:
    kernel, _, _ = stack()
    session = kernel.luo.create_session("vm")
    vfio = kernel.vfio(0, kernel.machine.spec.hardware.devices[0].bdf)
    session.preserve(vfio, 1)
    vfio.irqs = True
    with pytest.raises(KernelErrno, match="EINVAL"):
        kernel.kexec()
    vfio.irqs = False
    kernel.kexec()


@pytest.mark.parametrize(
    ("page_size", "input_bits", "levels", "top_entries"),
    [
        (0x1000, 40, 3, 1024), (0x1000, 42, 3, 4096), (0x1000, 44, 4, 32), (0x1000, 39, 3, 512),
        (0x4000, 40, 2, 32768), (0x4000, 42, 3, 64), (0x4000, 44, 3, 256), (0x4000, 48, 3, 4096),
        (0x10000, 42, 2, 8192), (0x10000, 44, 3, 4), (0x10000, 48, 3, 64),
    ],
)  # fmt: skip
def test_start_tables_are_concatenated_where_linux_must(
    page_size: int, input_bits: int, levels: int, top_entries: int
) -> None:
    unit = Unit(base=0x9050000, type=UnitType.ARM_SMMUV3, input_bits=input_bits)
    table = stage_2(machine(page_size), unit)
    assert (table.levels, table.top_entries) == (levels, top_entries)
    assert table.top % (top_entries * 8) == 0


@pytest.mark.parametrize("page_size", [0x1000, 0x10000])
@pytest.mark.parametrize("name", ["linux-7.2+iommu-smmuv3", "linux-7.3+iommu-vw"])
def test_smmuv3(name: str, page_size: int) -> None:
    units = (Unit(base=0x9050000, type=UnitType.ARM_SMMUV3, input_bits=44, first_domain_id=5),)
    devices = tuple(PciDevice(bdf=0x18 + 8 * i, unit=0x9050000) for i in range(2))
    kernel = Kernel(
        name,
        small_machine(
            4 * GiB, architecture="aarch64", page_size=page_size,
            hardware=Hardware(units, devices),
        ),
    )  # fmt: skip
    file = kernel.memfd("ram")
    file.truncate(1 << 20)
    file.add_seals(DMA_SEALS)
    iommufd = kernel.iommufd()
    space = iommufd.ioas_alloc()
    space.map_file(file, 0, 0x100000, 1 << 20)
    hwpt = iommufd.hwpt_alloc(units[0], space)
    iommufd.mark(hwpt, 1)
    session = kernel.luo.create_session("vm")
    session.preserve(file, 1)
    session.preserve(iommufd, 2)
    iommufd.attach(devices[0], hwpt)
    session.preserve(kernel.vfio(0, 0x18, iommufd), 3)
    image = kernel.kexec()
    if page_size == 0x10000:
        # The stream table entry of a real 7.3 with 64 KiB pages, but for the table's address.
        driver: Any = kernel.drivers.of(0x9050000)  # type: ignore[union-attr]
        ste = np.frombuffer(image.memory.read(driver.entry_address(devices[0]), 64), "<u8").tolist()
        assert ste == [0xD, 0, 0x44C759400000005, hwpt.domain.table.top, 0, 0, 0, 0]
        assert driver.strtab_base_cfg == 0x10210
    with decoded_image.open(image.memory) as found:
        assert found.page_size == page_size
        assert found.luo is not None
        state = next(f for f in found.luo.flbs if f.name.startswith(b"iommu")).state
        assert len(state.devices) == 1
