"""iommufd and vfio-pci files of a scenario, and the steps on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from abi.errors import UsageError
from abi.pagetable import Permission
from abi.vfio_pci import SavedCapability
from inspector.kernel.machine.hardware import PciDevice, Unit, parse_bdf
from inspector.kernel.outgoing.ioas import Hwpt, Ioas
from inspector.kernel.outgoing.iommufd import Iommufd, IommufdHandler
from inspector.kernel.scenario.steps import FILE_TYPES, STEPS, Do, FileMaker, World
from inspector.kernel.toml_file import Table

_ACCESS = {
    "r": Permission.READ,
    "w": Permission.WRITE,
    "rw": Permission.READ | Permission.WRITE,
}


def _full(session: str | None, name: str) -> str:
    return name if session is None else f"{session}/{name}"


def _object(world: World, session: str | None, name: str, kind: type) -> Any:
    """An object by its name in the session, or its full name."""
    full = _full(session, name)
    found = None
    for known in (world.objects, world.files):
        found = known.get(full) or known.get(name)
        if found is not None:
            break
    if not isinstance(found, kind):
        raise UsageError(f"there is no {kind.__name__.lower()} {name!r} at this point")
    return found


def _device(world: World, text: str) -> PciDevice:
    segment, bdf = parse_bdf(text)
    device = world.kernel.machine.spec.hardware.device(segment, bdf)
    if device is None:
        raise UsageError(f"the machine has no device {text}")
    return device


def _unit(world: World, base: int | None) -> Unit:
    hardware = world.kernel.machine.spec.hardware
    if base is None and hardware.units:
        return hardware.units[0]
    unit = hardware.unit(base or 0)
    if unit is None:
        raise UsageError(f"the machine has no IOMMU at {base or 0:#x}")
    return unit


# -- iommufd -----------------------------------------------------------------------------------


def _iommufd(table: Table) -> FileMaker:
    makers = [_ioas(t) for t in table.tables("ioas")]
    makers += [_hwpt(t) for t in table.tables("hwpt")]
    makers += [_attach(t, "device", "hwpt") for t in table.tables("attach")]

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            if name in world.files:
                raise UsageError(f"there is a file {name!r} already")
            opened = world.files[name] = world.kernel.iommufd()
            for maker in makers:
                maker(world, session, opened)
            if session is not None and token is not None:
                world.session(session).preserve(opened, token)

        return do

    return make


Maker = Callable[[World, "str | None", Iommufd], None]


def _names(table: Table) -> Callable[[int], str]:
    name, count = table.text("name"), table.integer("count", 1, bits=24)
    if count > 1 and "{i}" not in name:
        raise table.error("name", "needs {i} where there are several")
    return lambda i: str(name.replace("{i}", str(i)))


def _ioas(table: Table) -> Maker:
    name, count = _names(table), table.integer("count", 1, bits=24)
    maps = [_mapping(t) for t in table.tables("map")]
    table.done()

    def make(world: World, session: str | None, opened: Iommufd) -> None:
        for i in range(count):
            space = opened.ioas_alloc()
            world.objects[_full(session, name(i))] = space
            for add in maps:
                add(world, session, space)

    return make


def _mapping(table: Table) -> Callable[[World, str | None, Ioas], None]:
    file = table.text("file", None)
    offset, size = table.size("offset", 0), table.size("size")
    iova, access = table.integer("iova"), _ACCESS[table.choice("access", _ACCESS, "rw")]
    count, stride = table.integer("count", 1, bits=32), table.size("stride", 0)
    pa = table.integer("pa", 0)
    if count > 1 and stride and stride < size:
        raise table.error("stride", "is smaller than size")
    table.done()

    def add(world: World, session: str | None, space: Ioas) -> None:
        if file is None:
            space.map_user(pa, iova, size, access)
            return
        backing = world.files.get(_full(session, file), world.files.get(file))
        if backing is None:
            raise table.error("file", f"there is no file {file!r} at this point")
        space.map_file(backing, offset, iova, size, access, count=count, stride=stride)

    return add


def _hwpt(table: Table) -> Maker:
    name, count = _names(table), table.integer("count", 1, bits=24)
    space, parent = table.text("ioas", None), table.text("parent", None)
    unit, token = table.integer("unit", None), table.integer("token", None)
    first_stage = table.flag("first_stage")
    table.done()

    def make(world: World, session: str | None, opened: Iommufd) -> None:
        bits = _token_bits(world)
        for i in range(count):
            own = space.replace("{i}", str(i)) if space is not None else None
            made = opened.hwpt_alloc(
                _unit(world, unit),
                None if own is None else _object(world, session, own, Ioas),
                parent=None if parent is None else _object(world, session, parent, Hwpt),
                first_stage=first_stage,
            )
            world.objects[_full(session, name(i))] = made
            if token is not None:
                opened.mark(made, token + i, bits=bits)

    return make


def _token_bits(world: World) -> int:
    for handler in world.kernel.luo.handlers:
        if isinstance(handler, IommufdHandler):
            return handler.token_bits
    return 64


def _attach(table: Table, device_key: str, hwpt_key: str) -> Maker:
    device, hwpt = table.text(device_key), table.text(hwpt_key)
    table.done()

    def make(world: World, session: str | None, opened: Iommufd) -> None:
        opened.attach(_device(world, device), _object(world, session, hwpt, Hwpt))

    return make


# -- vfio-pci ----------------------------------------------------------------------------------


def _vfio(table: Table) -> FileMaker:
    text, nth_device = table.text("bdf", None), table.integer("device", None, bits=32)
    if (text is None) == (nth_device is None):
        raise table.error("bdf", "name the device by bdf, or by its number with device")
    iommufd, hwpt = table.text("iommufd", None), table.text("hwpt", None)
    hwpts = table.integer("hwpts", 1, bits=24)
    irqs, cdev = table.flag("irqs"), not table.flag("legacy_group")
    config = _hex(table, "config")
    bars = tuple(table.sizes("bars"))
    if len(bars) > 7:
        raise table.error("bars", "has more than 7 values")
    capabilities = [_capability(t) for t in table.tables("capability")]
    sessions_apart = table.integer("per_session", 0, bits=32)

    def make(session: str | None, name: str, token: int | None, nth: int) -> Do:
        def do(world: World) -> None:
            devices = world.kernel.machine.spec.hardware.devices
            if text is not None:
                first = _device(world, text)
                device = first if nth == 0 else _nth_after(world, first, nth)
            else:
                number = nth_device + nth + sessions_apart * world.session_number(session)
                if number >= len(devices):
                    raise UsageError(f"the machine has no device number {number}")
                device = devices[number]
            opened = None if iommufd is None else _object(world, session, iommufd, Iommufd)
            file = world.kernel.vfio(device.segment, device.bdf, opened)
            file.irqs, file.cdev, file.config = irqs, cdev, config
            file.capabilities = capabilities
            file.bars = (*bars, *(0,) * (7 - len(bars)))
            world.files[name] = file
            if hwpt is not None:
                if opened is None:
                    raise UsageError("hwpt needs iommufd")
                own = hwpt.replace("{i}", str(nth % hwpts))
                opened.attach(device, _object(world, session, own, Hwpt))
            if session is not None and token is not None:
                world.session(session).preserve(file, token)

        return do

    return make


def _nth_after(world: World, first: PciDevice, nth: int) -> PciDevice:
    device = world.kernel.machine.spec.hardware.device(
        first.key + nth >> 16, first.key + nth & 0xFFFF
    )
    if device is None:
        raise UsageError(f"the machine has no device {nth} places behind {first}")
    return device


def _hex(table: Table, key: str) -> bytes:
    text = table.text(key, "")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise table.error(key, "is no hexadecimal text") from None


def _capability(table: Table) -> SavedCapability:
    made = SavedCapability(
        0, table.integer("id", bits=16), int(table.flag("extended")), _hex(table, "data")
    )
    table.done()
    return made


# -- steps -------------------------------------------------------------------------------------


def _step_map(table: Table) -> Do:
    space = table.text("ioas")
    add = _mapping(_Rest(table, {"ioas", "do", "expect"}))
    return lambda world: add(world, None, _object(world, None, space, Ioas))


def _step_unmap(table: Table) -> Do:
    space, iova, size = table.text("ioas"), table.integer("iova"), table.size("size")
    return lambda world: _object(world, None, space, Ioas).unmap(iova, size)


def _step_mark(table: Table) -> Do:
    hwpt, token = table.text("hwpt"), table.integer("token")

    def do(world: World) -> None:
        found: Hwpt = _object(world, None, hwpt, Hwpt)
        found.iommufd.mark(found, token, bits=_token_bits(world))

    return do


def _step_unmark(table: Table) -> Do:
    hwpt = table.text("hwpt")

    def do(world: World) -> None:
        found: Hwpt = _object(world, None, hwpt, Hwpt)
        found.iommufd.unmark(found)

    return do


def _step_attach(table: Table) -> Do:
    device, hwpt = table.text("device"), table.text("hwpt")

    def do(world: World) -> None:
        found: Hwpt = _object(world, None, hwpt, Hwpt)
        found.iommufd.attach(_device(world, device), found)

    return do


def _step_detach(table: Table) -> Do:
    device, iommufd = table.text("device"), table.text("iommufd")

    def do(world: World) -> None:
        _object(world, None, iommufd, Iommufd).detach(_device(world, device))

    return do


def _step_destroy(table: Table) -> Do:
    name = table.text("object")

    def do(world: World) -> None:
        found = world.objects.get(name)
        if isinstance(found, Hwpt):
            found.iommufd.destroy(found)
        elif isinstance(found, Ioas):
            found.iommufd.destroy_ioas(found)
        else:
            raise UsageError(f"there is no HWPT or address space {name!r} at this point")
        del world.objects[name]

    return do


def _step_irqs(table: Table) -> Do:
    name, on = table.text("file"), table.flag("enabled")

    def do(world: World) -> None:
        world.file(name).irqs = on

    return do


class _Rest(Table):
    """A table of which some keys are read already; the rest is one nested table's."""

    def __init__(self, table: Table, known: set[str]) -> None:
        super().__init__(table.document, table.path, table._values)
        self._known |= known
        self._outer = table

    def done(self) -> None:
        """Leave the check to the outer table."""
        self._outer._known |= self._known


FILE_TYPES |= {"iommufd": _iommufd, "vfio-pci": _vfio}
STEPS |= {
    "map": _step_map,
    "unmap": _step_unmap,
    "mark": _step_mark,
    "unmark": _step_unmark,
    "attach": _step_attach,
    "replace": _step_attach,
    "detach": _step_detach,
    "destroy": _step_destroy,
    "interrupts": _step_irqs,
}
