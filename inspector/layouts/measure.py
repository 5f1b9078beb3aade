"""Measure the serialized structs of a kernel, whatever form it comes in.

One function, :func:`measure`: a raw BTF blob, a vmlinux, a bzImage, a module, an object file with
DWARF, or a record made before (:meth:`inspector.layouts.measured.MeasuredKernel.to_json`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from abi import registry
from abi.errors import UnreadableError
from inspector.layouts.btf import Btf, BtfError
from inspector.layouts.kernel_file import KernelFile, open_kernel
from inspector.layouts.measured import KERNEL_NAMES, MeasuredKernel, MeasuredStruct

#: Structs that look serialized, to find those that no schema knows.
SERIALIZED = re.compile(r"(?:[a-z0-9_]+_ser|khoser_[a-z0-9_]+)\Z")
_MAX_DISCOVERED = 4096


def known_structs() -> set[str]:
    """Names of all declared structs, as the kernel spells them."""
    return {KERNEL_NAMES.get(n, n) for g in registry.every() for n in g.layouts}


def known_constants() -> set[str]:
    """Names of all declared constants."""
    return {name for g in registry.every() for name in g.constants}


def known_strings() -> set[str]:
    """All strings that name a generation."""
    return {string for g in registry.every() for string in g.strings}


def measure(
    path: str,
    *,
    base: str | None = None,
    structs: Iterable[str] = (),
    prefer: str = "btf",
) -> MeasuredKernel:
    """Measure every serialized struct that a file describes.

    :param path: the file; ``-`` is standard input.
    :param base: for a module with split BTF, the vmlinux (or its BTF) it was built against.
    :param structs: names to measure besides those of the schemas.
    :param prefer: ``btf`` or ``dwarf``, where a file has both.
    :raises UnreadableError: not a kernel, or without a description of its types.
    """
    try:
        return _measure(path, base, known_structs() | set(structs), prefer)
    except BtfError as error:
        raise BtfError(f"{path}: {error}", error.offset) from None


def _measure(path: str, base: str | None, names: set[str], prefer: str) -> MeasuredKernel:
    opened = open_kernel(path)
    if isinstance(opened, bytes):
        return _from_bytes(opened, path, names, base)
    wanted = prefer == "btf" or not opened.has(".debug_info")
    if opened.has(".BTF") and wanted:
        readable = base or opened.has(".BTF.base") or _whole(opened)
        if readable or not opened.has(".debug_info"):
            return _finish(_module_btf(opened, base), "btf", opened, path, names)
    if opened.has(".debug_info"):
        return _from_dwarf(opened, path, names)
    raise UnreadableError(
        f"{path}: neither BTF nor DWARF in it"
        " (build with CONFIG_DEBUG_INFO_BTF, or give an unstripped file)"
    )


def _from_bytes(data: bytes, path: str, names: set[str], base: str | None) -> MeasuredKernel:
    if data[:1] == b"{":
        try:
            return MeasuredKernel.from_json(json.loads(data))
        except (ValueError, RecursionError):
            raise UnreadableError(f"{path}: JSON, but no record of measured layouts") from None
    if data[:2] in (b"\x9f\xeb", b"\xeb\x9f"):
        return _finish(Btf(data, _base_btf(base)), "btf", None, path, names)
    raise UnreadableError(f"{path}: neither a kernel, nor a module, nor BTF")


def _whole(file: KernelFile) -> bool:
    """Whether the BTF stands alone: its strings start with the empty one."""
    data = file.section(".BTF") or b""
    if data[:2] not in (b"\x9f\xeb", b"\xeb\x9f") or len(data) < 24:
        return True  # damaged: let the reader say how
    order = "big" if data[:2] == b"\xeb\x9f" else "little"
    numbers = [int.from_bytes(data[i : i + 4], order) for i in (4, 16)]  # type: ignore[arg-type]
    start = sum(numbers)
    return data[start : start + 1] == b"\0"


def _module_btf(file: KernelFile, base: str | None) -> Btf:
    data = file.section(".BTF") or b""
    if base is None and file.has(".BTF.base"):
        return Btf(data, Btf(file.section(".BTF.base") or b""))
    if base is None and not _whole(file):
        raise UnreadableError(
            f"{file.source}: the module's BTF continues that of its vmlinux; name it with --base"
        )
    return Btf(data, None if _whole(file) else _base_btf(base))


def _base_btf(path: str | None) -> Btf | None:
    if path is None:
        return None
    opened = open_kernel(path)
    data = opened if isinstance(opened, bytes) else opened.section(".BTF")
    if data is None:
        raise UnreadableError(f"{path}: no BTF in it")
    return Btf(data)


def _finish(
    btf: Btf, origin: str, file: KernelFile | None, path: str, names: set[str]
) -> MeasuredKernel:
    present: set[str] = set()
    discovered: set[str] = set()
    for name, _ in btf.structs():
        if name in names:
            present.add(name)
        elif len(discovered) < _MAX_DISCOVERED and SERIALIZED.match(name):
            discovered.add(name)
    return MeasuredKernel(
        source=path,
        origin=origin,
        structs=btf.layouts(present | discovered),
        constants=btf.enumerators(known_constants()),
        strings=None if file is None else file.version_strings(known_strings()),
        release="" if file is None else file.release(),
        byteorder=btf.byteorder,
    )


def _from_dwarf(file: KernelFile, path: str, names: set[str]) -> MeasuredKernel:
    from inspector.layouts.dwarf import Dwarf

    strings = file.section(".debug_str") or b""
    pattern = re.compile(rb"(?<=\0)(?:[a-z0-9_]{1,60}_ser|khoser_[a-z0-9_]{1,60})(?=\0)")
    discovered = {m.group().decode() for m in pattern.finditer(strings)} - names
    wanted = names | set(sorted(discovered)[:_MAX_DISCOVERED])
    if file.path is not None:
        dwarf = Dwarf(file.path)
        return _measured_dwarf(dwarf, file, path, wanted)
    with tempfile.NamedTemporaryFile(prefix="kho-", suffix=".elf") as copy:
        copy.write(file.data)
        copy.flush()
        return _measured_dwarf(Dwarf(Path(copy.name)), file, path, wanted)


def _measured_dwarf(dwarf: object, file: KernelFile, path: str, names: set[str]) -> MeasuredKernel:
    from inspector.layouts.dwarf import Dwarf

    assert isinstance(dwarf, Dwarf)
    layouts: dict[str, tuple[MeasuredStruct, ...]] = dwarf.layouts(sorted(names))
    return MeasuredKernel(
        source=path,
        origin="dwarf",
        structs=layouts,
        constants=dwarf.enumerators(sorted(known_constants())),
        strings=file.version_strings(known_strings()),
        release=file.release(),
        byteorder=dwarf.byteorder,
    )
