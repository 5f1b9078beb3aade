"""Virtual machines, guest memory, huge pages and mounts of a scenario."""

from __future__ import annotations

from typing import Any

from abi.errors import UsageError
from abi.guest_memfd import GUEST_MEMFD_LUO_FLAG_INIT_SHARED, GUEST_MEMFD_LUO_FLAG_MMAP
from abi.kvm import CARETAKER_STATES, kvm_caretaker_telemetry_ser
from inspector.kernel.outgoing.kvm import AttributeRange, KvmVm
from inspector.kernel.outgoing.memfd import pattern_bytes
from inspector.kernel.outgoing.tmpfs import TmpfsMount
from inspector.kernel.scenario.steps import (
    FILE_CONTENT,
    FILE_TYPES,
    FILLS,
    Do,
    FileMaker,
    World,
    file_content,
    fill_file,
)
from inspector.kernel.toml_file import Table

_FLAGS = {"mmap": GUEST_MEMFD_LUO_FLAG_MMAP, "init-shared": GUEST_MEMFD_LUO_FLAG_INIT_SHARED}
#: Registers of one vCPU, bytes.
_MOST_STATE = 1 << 24
_STATES = {
    name.removeprefix("KVM_CARETAKER_").lower(): value for name, value in CARETAKER_STATES.items()
}
_TELEMETRY = tuple(f.name for f in kvm_caretaker_telemetry_ser.fields)


def _keep(world: World, session: str | None, name: str, token: int | None, file: Any) -> None:
    """Name a file, and preserve it if it is of a session."""
    if name in world.files:
        raise UsageError(f"there is a file {name!r} already")
    world.files[name] = file
    if session is not None and token is not None:
        world.session(session).preserve(file, token)


def _vm_named(world: World, session: str | None, name: str) -> KvmVm:
    found = world.files.get(f"{session}/{name}", world.files.get(name))
    if not isinstance(found, KvmVm):
        raise UsageError(f"there is no virtual machine {name!r} at this point")
    return found


# -- virtual machines ---------------------------------------------------------------------------


def _vm(table: Table) -> FileMaker:
    kind = table.integer("machine_type", 0)
    attributes = []
    for each in table.tables("attributes"):
        gfn, frames = each.integer("gfn", bits=52), each.integer("frames", 1, bits=24)
        attributes.append(AttributeRange(gfn, frames, each.integer("value")))
        each.done()
    folios = []
    for each in table.tables("folios"):
        folios.append((each.integer("count", 1, bits=16), each.integer("order", 0, bits=5)))
        each.done()

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            machine = world.kernel.machine
            vm = world.kernel.kvm_vm(kind)
            vm.attributes = tuple(attributes)
            vm.folios = tuple(
                (frame, order)
                for count, order in folios
                for frame in machine.alloc_many(count, order).tolist()
            )
            _keep(world, session, name, token, vm)

        return do

    return make


def _vcpu(table: Table) -> FileMaker:
    vm, first = table.text("vm"), table.integer("vcpu", 0, bits=32)
    size, pattern = table.size("state", 4096), table.integer("pattern", None)
    if size > _MOST_STATE:
        raise table.error("state", f"{size:#x} bytes are more than any processor has")
    control: dict[str, int] | None = None
    telemetry: dict[str, int] | None = None
    cpu: int | None = None
    if table.has("caretaker"):
        inner = table.table("caretaker")
        control = {"state": _STATES[inner.choice("state", _STATES, "paused")]}
        cpu = inner.integer("cpu", None, bits=32)
        if inner.has("telemetry"):
            told = inner.table("telemetry")
            telemetry = {name: told.integer(name, 0) for name in _TELEMETRY}
            told.done()
        inner.done()

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            chosen = pattern if pattern is not None else token or 0
            state = pattern_bytes(chosen, 0, size)
            vcpu = world.kernel.kvm_vcpu(_vm_named(world, session, vm), first + nth, state)
            vcpu.control, vcpu.telemetry = control, telemetry
            if control is not None and cpu is not None:
                vcpu.control = {**control, "pcpu_id": cpu + nth}
            _keep(world, session, name, token, vcpu)

        return do

    return make


def _guest_memfd(table: Table) -> FileMaker:
    vm, size = table.text("vm"), table.size("size")
    fill = table.choice("fill", FILLS, "pattern")
    chosen, stale = table.integer("pattern", None), table.integer("not_uptodate", 0, bits=32)
    huge, flags = table.flag("huge"), 0
    for name in table.strings("flags"):
        if name not in _FLAGS:
            raise table.error("flags", f"{name!r} is none of {', '.join(_FLAGS)}")
        flags |= _FLAGS[name]

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            owner = _vm_named(world, session, vm)
            file = world.kernel.guest_memfd(owner, flags, name)
            file.huge_order = world.kernel.machine.page_shift - 3 if huge else 0
            file.truncate(size)
            fill_file(file, fill, chosen if chosen is not None else token or 0)
            file.stale = stale
            _keep(world, session, name, token, file)

        return do

    return make


# -- huge pages and mounts ----------------------------------------------------------------------


def _huge_memfd(table: Table) -> FileMaker:
    page, size = table.size("page"), table.size("size", 0)
    fill = table.choice("fill", FILLS, "pattern")
    chosen, pos = table.integer("pattern", None), table.integer("pos", 0)

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            pages = page // world.kernel.machine.page_size
            if page % world.kernel.machine.page_size or pages & (pages - 1) or pages < 2:
                raise table.error("page", "is no size of huge pages")
            file = world.kernel.huge_memfd(pages.bit_length() - 1, name)
            file.truncate(size)
            fill_file(file, fill, chosen if chosen is not None else token or 0)
            file.seek(pos)
            _keep(world, session, name, token, file)

        return do

    return make


def _tmpfs(table: Table) -> FileMaker:
    limit, mode = table.size("limit", 0), table.integer("mode", 0o1777, bits=32)
    flags = table.integer("flags", 0, bits=32)

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            blocks = -(-limit // world.kernel.machine.page_size)
            _keep(world, session, name, token, TmpfsMount(blocks, mode, flags))

        return do

    return make


FILE_TYPES |= {
    "kvm-vm": _vm,
    "kvm-vcpu": _vcpu,
    "guest-memfd": _guest_memfd,
    "huge-memfd": _huge_memfd,
    "tmpfs-mount": _tmpfs,
}
FILE_CONTENT |= {
    "kvm-vcpu": lambda table: table.size("state", 4096),
    "guest-memfd": file_content,
    "huge-memfd": file_content,
}
