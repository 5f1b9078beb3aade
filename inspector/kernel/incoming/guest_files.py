"""Virtual machines, guest memory, huge pages and mounts in the kernel that takes over.

No kernel with these handlers was observed. The model restores what the layouts say, in the way
memory files are restored, and refuses what cannot mean anything: a token that names no virtual
machine, huge pages that no pool has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi.guest_memfd import GUEST_MEMFD_LUO_FOLIO_UPTODATE
from abi.kvm import VCPU_STRING, VM_STRING
from abi.schema import Struct, resolve
from inspector.budget import Cost
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.device_state import Devices, check_budget
from inspector.kernel.incoming.in_use import protected
from inspector.kernel.incoming.luo import FileEntry, SessionEntry
from inspector.kernel.incoming.memory_file import RestoredFolios, discard, restore_folios
from inspector.kernel.incoming.pages import (
    free_area,
    release,
    restore_vmalloc,
    take_folio,
    take_folios,
)
from inspector.kernel.incoming.restore import I8Array
from inspector.kernel.incoming.view import PageFault
from inspector.memory.base import U64Array
from inspector.walk.contiguous import MAX_PAGES
from inspector.walk.hugetlb import MAX_ORDER, Hugetlb, walk_hugetlb

#: Registers of one vCPU that are kept, bytes; no processor has as many.
_MOST_STATE = 1 << 24
#: Layers whose files are restored here.
LAYERS = ("kvm", "guest-memfd", "hugetlb", "tmpfs")
NOTE = "files of {!r}: no kernel with this handler was observed, the model follows the layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredGuestMemfd(RestoredFolios):
    """A guest_memfd after retrieve."""

    flags: int
    vm_token: int
    #: First pages, in the file, of folios that are not up to date.
    stale: U64Array = field(repr=False)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "size": self.size,
            "flags": f"{self.flags:#x}",
            "folios": len(self.frames),
            "vm_token": f"{self.vm_token:#x}",
        }

    def __str__(self) -> str:
        return f"{self.size} bytes of {self.vm_token:#x} in {len(self.frames)} folios"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredHugeMemfd(RestoredFolios):
    """A memory file of huge pages after retrieve."""

    pos: int
    order: int

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "size": self.size,
            "pos": self.pos,
            "order": self.order,
            "folios": len(self.frames),
        }

    def __str__(self) -> str:
        return (
            f"{self.size} bytes in {len(self.frames)} huge pages of order {self.order},"
            f" position {self.pos}"
        )


@dataclass(frozen=True, slots=True)
class RestoredVm:
    """A virtual machine after retrieve: its attributes as rows, and folios of its own."""

    path: str
    token: int
    type: int
    attributes: U64Array | None
    frames: U64Array
    orders: I8Array

    def document(self) -> dict[str, Any]:
        """As JSON."""
        rows = self.attributes
        return {
            "machine_type": f"{self.type:#x}",
            "mem_attrs": None if rows is None else len(rows),
            "folios": len(self.frames),
        }

    def __str__(self) -> str:
        more = f", {len(self.attributes)} memory attributes" if self.attributes is not None else ""
        more += f", {len(self.frames)} folios" if len(self.frames) else ""
        return f"virtual machine of type {self.type:#x}{more}"


@dataclass(frozen=True, slots=True)
class RestoredVcpu:
    """A vCPU after retrieve.

    ``state`` is the block that holds its registers, whose layout and length are not known;
    empty where the image lacks it. ``control`` and ``telemetry`` are what the caretaker said.
    """

    path: str
    token: int
    vcpu_id: int
    vm_token: int
    caretaker: bool
    state: bytes = field(default=b"", repr=False)
    control: Mapping[str, int] | None = None
    telemetry: Mapping[str, int] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "vcpu_id": self.vcpu_id,
            "vm_token": f"{self.vm_token:#x}",
            "caretaker": self.caretaker,
        }

    def __str__(self) -> str:
        return f"vCPU {self.vcpu_id} of {self.vm_token:#x}"


@dataclass(frozen=True, slots=True)
class RestoredMount:
    """A tmpfs mount after retrieve: a new, empty one with the same options."""

    path: str
    token: int
    max_blocks: int
    mode: int
    flags: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"max_blocks": self.max_blocks, "mode": f"{self.mode:#x}"}

    def __str__(self) -> str:
        return f"tmpfs mount of at most {self.max_blocks} pages, mode {self.mode:#o}"


def retrieve(devices: Devices, session: SessionEntry, entry: FileEntry) -> Any:
    """Build a file again. Raises KernelErrno, Absent, PageFault."""
    boot = devices.boot
    boot.notes.append(NOTE.format(entry.compatible.decode("utf-8", "backslashreplace")))
    if entry.layer == "guest-memfd":
        return _guest_memfd(boot, session, entry)
    if entry.layer == "hugetlb":
        return _huge_memfd(devices, entry)
    if entry.layer == "tmpfs":
        return _mount(boot, entry)
    if entry.compatible == VCPU_STRING.encode():
        return _vcpu(boot, session, entry)
    return _vm(boot, entry)


def _values(boot: Booting, entry: FileEntry, struct: str) -> tuple[Struct, dict[str, Any]]:
    layout = resolve(boot.kernel[entry.layer].layouts[struct], boot.view.page_size)
    if boot.marks.peek(entry.data >> boot.view.page_shift) < 0:
        protected(boot, entry.path, f"struct {struct}", entry.data, layout.size)
    return layout, layout.unpack(boot.view.read(entry.data, layout.size))


def _machine(session: SessionEntry, token: int) -> None:
    """The file that a token names is a virtual machine. Raises ENOENT, and its own error."""
    owner = session.find(token)
    if owner is None or owner.compatible != VM_STRING.encode():
        raise KernelErrno("ENOENT", f"no virtual machine {token:#x} in the session")
    if owner.error is not None:
        raise KernelErrno(owner.error.name, f"virtual machine {token:#x} cannot be retrieved")


def _guest_memfd(boot: Booting, session: SessionEntry, entry: FileEntry) -> RestoredGuestMemfd:
    layout, values = _values(boot, entry, "guest_memfd_luo_ser")
    _machine(session, values["vm_token"])
    frames, orders, index, flags = restore_folios(
        boot, entry, layout.nested(values, "folios"), values["nr_folios"]
    )
    stale = index[flags & np.uint64(GUEST_MEMFD_LUO_FOLIO_UPTODATE) == 0]
    release(boot, entry.data)
    return RestoredGuestMemfd(
        path=entry.path, token=entry.token, size=values["size"], frames=frames, orders=orders,
        index=index, view=boot.view, flags=values["flags"], vm_token=values["vm_token"],
        stale=stale,
    )  # fmt: skip


def _huge_memfd(devices: Devices, entry: FileEntry) -> RestoredHugeMemfd:
    boot = devices.boot
    layout, values = _values(boot, entry, "hugemfd_ser")
    order = values["order"]
    pools = _pools(devices)
    if order > MAX_ORDER or pools.pool(order) is None:
        raise KernelErrno("EINVAL", f"no pool has huge pages of order {order}")
    frames, orders, index, _ = restore_folios(
        boot, entry, layout.nested(values, "folios"), values["nr_folios"], unit=order
    )
    odd = np.flatnonzero(orders != order)
    if len(odd):
        discard(boot, frames, orders)
        pa = int(frames[odd[0]]) << boot.view.page_shift
        raise KernelErrno(
            "EINVAL", f"huge page {pa:#x} was preserved with order {int(orders[odd[0]])}"
        )
    release(boot, entry.data)
    return RestoredHugeMemfd(
        path=entry.path, token=entry.token, size=values["size"], frames=frames, orders=orders,
        index=index, view=boot.view, pos=values["pos"], order=order,
    )  # fmt: skip


def _pools(devices: Devices) -> Hugetlb:
    """The pools, read when they are first needed. Raises ENOENT, EINVAL."""
    boot = devices.boot
    generation = boot.kernel["hugetlb"]
    flb = devices.flbs.get(generation.strings[0].encode())
    if flb is None:
        raise KernelErrno("ENOENT", "no pools of huge pages were handed over")
    if flb.error is not None:
        raise flb.error
    if flb.state is None:
        size = resolve(generation.layouts["hugetlb_ser"], boot.view.page_size).size
        boot.view.read(flb.data, size)
        protected(boot, flb.path, "struct hugetlb_ser", flb.data, size)
        survey = boot.survey(per_code=4)
        found = walk_hugetlb(survey, generation, flb.data, flb.path)
        check_budget(survey)
        flb.state = found
        wrong = [f for f in survey.findings.items if f.code in ("KHO-HTL-001", "KHO-HTL-003")]
        if flb.state is None or wrong:
            why = wrong[0].message if wrong else f"no struct at {flb.data:#x}"
            flb.error = KernelErrno("EINVAL", f"the pools of huge pages are refused: {why}")
            raise flb.error
        if take_folio(boot, flb.data >> boot.view.page_shift) >= 0:
            devices.held.setdefault("hugetlb", []).append((flb.data, 0))
    assert isinstance(flb.state, Hugetlb)
    return flb.state


def _vm(boot: Booting, entry: FileEntry) -> RestoredVm:
    layout, values = _values(boot, entry, "kvm_luo_ser")
    attributes: U64Array | None = None
    frames, orders = np.empty(0, np.uint64), np.empty(0, np.int8)
    count = values.get("nr_mem_attrs", 0)
    if "nr_mem_attrs" in values:
        attributes = np.empty((0, 2), np.uint64)
    if count:
        area = restore_vmalloc(boot, layout.nested(values, "mem_attrs"), entry.path)
        if count * 16 > area.size:
            raise PageFault(int(area.frames[-1]) << boot.view.page_shift)
        attributes = area.words(boot, 2 * count).reshape(-1, 2)
        free_area(boot, area)
    if values.get("kho_folios"):
        frames, orders = _listed(boot, entry, values["kho_folios"])
    release(boot, entry.data)
    return RestoredVm(entry.path, entry.token, values["type"], attributes, frames, orders)


def _listed(boot: Booting, entry: FileEntry, address: int) -> tuple[U64Array, I8Array]:
    """The folios of a machine; their list is freed."""
    count = int.from_bytes(boot.view.read(address, 8), "little")
    if 8 * count > MAX_PAGES * boot.view.page_size:
        raise KernelErrno("EINVAL", f"{count} folios are counted")
    boot.spend(Cost.ENTRIES, 8 * count, address)
    protected(boot, entry.path, "the list of folios", address, 8 + 8 * count)
    raw = boot.view.read(address + 8, 8 * count) if count else b""
    frames = np.frombuffer(raw, "<u8").astype(np.uint64) >> np.uint64(boot.view.page_shift)
    orders = take_folios(boot, frames)
    lost = np.flatnonzero(orders < 0)
    if len(lost):
        discard(boot, frames, orders)
        pa = int(frames[lost[0]]) << boot.view.page_shift
        raise KernelErrno("EIO", f"folio {pa:#x} is not preserved")
    release(boot, address)
    return frames, orders


def _vcpu(boot: Booting, session: SessionEntry, entry: FileEntry) -> RestoredVcpu:
    _, values = _values(boot, entry, "kvm_vcpu_ser")
    _machine(session, values["vm_token"])
    if not values["arch_state"]:
        raise KernelErrno("EINVAL", "the vCPU has no architectural state")
    boot.view.read(values["arch_state"], 8)
    protected(boot, entry.path, "the architectural state", values["arch_state"], 8)
    state = _registers(boot, values["arch_state"])
    control: dict[str, int] | None = None
    telemetry: dict[str, int] | None = None
    if values["cb"]:
        block = resolve(boot.kernel["kvm"].layouts["kvm_caretaker_cb_ser"], boot.view.page_size)
        told = block.unpack(boot.view.read(values["cb"], block.size))
        if told["vcpu_id"] != values["vcpu_id"]:
            raise KernelErrno("EINVAL", f"the control block is of vCPU {told['vcpu_id']}")
        control = {k: v for k, v in told.items() if k not in ("vcpu_id", "telemetry")}
        if told["telemetry"]:
            telemetry = _telemetry(boot, told["telemetry"])
            release(boot, told["telemetry"])
        release(boot, values["cb"])
    release(boot, values["arch_state"])
    release(boot, entry.data)
    return RestoredVcpu(
        entry.path, entry.token, values["vcpu_id"], values["vm_token"], bool(values["flags"] & 1),
        state, control, telemetry,
    )  # fmt: skip


def _registers(boot: Booting, address: int) -> bytes:
    """The block of registers: nothing says how long they are, so all of it."""
    order = max(boot.marks.peek(address >> boot.view.page_shift), 0)
    size = boot.view.page_size << order
    if size > _MOST_STATE or not boot.view.present(address, size):
        return b""
    boot.spend(Cost.ENTRIES, size, address)
    return boot.view.read(address, size)


def _telemetry(boot: Booting, address: int) -> dict[str, int] | None:
    layouts = boot.kernel["kvm"].layouts
    layout = resolve(layouts["kvm_caretaker_telemetry_ser"], boot.view.page_size)
    if not boot.view.present(address, layout.size):
        return None
    return dict(layout.unpack(boot.view.read(address, layout.size)))


def _mount(boot: Booting, entry: FileEntry) -> RestoredMount:
    _, values = _values(boot, entry, "tmpfs_luo_mnt_ser")
    release(boot, entry.data)
    return RestoredMount(
        entry.path, entry.token, values["max_blocks"], values["mode"], values["flags"]
    )


# -- finish -------------------------------------------------------------------------------------


def throw_away(boot: Booting, found: Any) -> None:
    """Free the memory of a file that nobody wanted."""
    if isinstance(found, (RestoredFolios, RestoredVm)):
        discard(boot, found.frames, found.orders)
