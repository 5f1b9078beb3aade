"""Read a whole KHO image with the Kaitai parsers: root, map, LUO, sessions, files, FLBs.

The second reader of the project, for differential tests and for users who want plain
objects::

    from specs.reader import read_image
    image = read_image(memory, root_pa)
    for session in image.luo.sessions: ...

Where a string names several layouts, the caller says which (:class:`Layouts`); this
reader does not guess, the codec of :mod:`inspector` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import KexecMetadata, KhoFdtProps, KhoSelftest, Luo
from .follow import Follower, Limits, Memory, Node, Problem
from .handlers import read_file, read_flb


@dataclass(frozen=True, slots=True)
class Layouts:
    """Which layout a string stands for, where it stands for several.

    The names are generation ids (``iommu-v3-2026-06``); see ``docs/kaitai.md`` for those
    that are accepted. None is the last layout that is known for the string.
    """

    #: Bytes of a bitmap of the kho-v1 map; None is the page size (6.18 and later).
    bitmap_size: int | None = None
    iommu: str | None = None
    iommufd: str | None = None
    pci: str | None = None
    vfio: str | None = None
    memfd: str | None = None
    kvm: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A preserved file. ``body`` is what its handler stored, None if it is not known."""

    pa: int
    handler: bytes
    data: int
    token: int
    body: Any = None


@dataclass(frozen=True, slots=True)
class Session:
    """A session; ``count`` is what the image says, ``files`` what was found."""

    pa: int
    name: bytes
    files_pa: int
    count: int
    files: list[File] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Flb:
    """A File-Lifecycle-Bound object. ``body`` as in :class:`File`."""

    pa: int
    name: bytes
    data: int
    count: int
    body: Any = None


@dataclass(slots=True)
class LuoState:
    """State of the Live Update Orchestrator; ``compatible`` is empty for feature trees."""

    pa: int
    compatible: str
    liveupdate_num: int = 0
    sessions_pa: int = 0
    flbs_pa: int = 0
    sessions: list[Session] = field(default_factory=list)
    flbs: list[Flb] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReserveMem:
    """A region of ``reserve_mem=``."""

    name: bytes
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """State of the in-kernel self test; folios as (physical address, order)."""

    csum: int
    folios: list[tuple[int, int]]


@dataclass(slots=True)
class Image:
    """What one KHO root leads to."""

    root_pa: int
    page_size: int
    compatible: str = ""
    map_pa: int = 0
    #: Sub blob -> (physical address, size or None where the format has none).
    blobs: dict[bytes, tuple[int, int | None]] = field(default_factory=dict)
    metadata: Any = None
    reserve_mem: list[ReserveMem] = field(default_factory=list)
    kho_test: SelfTest | None = None
    luo: LuoState | None = None
    problems: list[Problem] = field(default_factory=list)


class ImageReader:
    """Reads images of one memory; ``follower`` has the problems met so far."""

    def __init__(
        self,
        memory: Memory,
        page_size: int = 4096,
        layouts: Layouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.follower = Follower(memory, page_size, limits)
        self.page_size = page_size
        self.layouts = layouts or Layouts()

    def value(self, node: Node, name: bytes, parser: Any = KhoFdtProps) -> Any:
        """Value of a property, None (and a problem) if it is missing or refused."""
        raw = node.properties.get(name)
        where = f"property {name.decode('ascii', 'replace')}"
        if raw is None:
            self.follower.problem("inconsistent", where, 0, "missing")
            return None
        parsed = self.follower.parse(where, 0, raw, parser)
        return parsed and parsed.value

    def image(self, root_pa: int) -> Image:
        """Everything that hangs off the root FDT at ``root_pa``, but the map."""
        image = Image(root_pa, self.page_size, problems=self.follower.problems)
        root = self.follower.tree(root_pa, "root")
        if root is None:
            return image
        image.compatible = self.value(root, b"compatible", KhoFdtProps.KhoCompatible) or ""
        image.map_pa = self.value(root, b"preserved-memory-map") or 0
        old = b"fdt" in next((c.properties for c in root.children), {})
        for child in root.children:
            pa = self.value(child, b"fdt" if old else b"preserved-data")
            size = self.value(child, b"blob-size") if b"blob-size" in child.properties else None
            if pa:
                image.blobs[child.name] = (pa, size)
        for name, (pa, size) in image.blobs.items():
            if name == b"kexec-metadata":
                image.metadata = self.follower.struct(
                    "kexec-metadata", pa, 73 if size is None else min(size, 73), KexecMetadata
                )
            elif name == b"memblock":
                image.reserve_mem = self.memblock(pa)
            elif name == b"kho_test":
                image.kho_test = self.selftest(pa)
            elif name == b"LUO":
                image.luo = self.luo(pa, size)
        return image

    def blocks(self, image: Image) -> Iterator[tuple[int, int]]:
        """The preserved-memory map of an image, as (physical address, order)."""
        if image.compatible == "kho-v1":
            size = self.layouts.bitmap_size or self.page_size
            return self.follower.bitmap_blocks(image.map_pa, size)
        return self.follower.radix_blocks(image.map_pa, interim=image.compatible == "kho-v2")

    def memblock(self, pa: int) -> list[ReserveMem]:
        """Regions of the ``memblock`` blob."""
        tree = self.follower.tree(pa, "memblock")
        if tree is None or not self.value(tree, b"compatible", KhoFdtProps.MemblockCompatible):
            return []
        regions = []
        for node in tree.children:
            if self.value(node, b"compatible", KhoFdtProps.ReserveMemCompatible):
                start, size = self.value(node, b"start"), self.value(node, b"size")
                if start is not None and size is not None:
                    regions.append(ReserveMem(node.name, start, size))
        return regions

    def selftest(self, pa: int) -> SelfTest | None:
        """The ``kho_test`` blob, both forms of ``folios_info``."""
        follower = self.follower
        tree = follower.tree(pa, "kho_test")
        data = tree and tree.child(b"data")
        if tree is None or data is None:
            return None
        self.value(tree, b"compatible", KhoFdtProps.KhoTestCompatible)
        magic = tree.properties.get(b"magic", b"")
        if follower.parse("kho_test", pa, magic, KhoSelftest) is None:
            return None
        num = self.value(data, b"nr_folios", KhoFdtProps.NativeU4)
        csum = self.value(data, b"csum", KhoFdtProps.NativeU4)
        info = data.properties.get(b"folios_info", b"")
        if num is None or csum is None:
            return None
        # The inline array has 8 bytes for each folio, so it is a descriptor's size for two only.
        if len(info) == 16 and num != 2:
            area = follower.parse("kho_test", pa, info, KhoSelftest.FoliosInfo)
            content = follower.vmalloc_bytes(area.area, num * 8) if area else None
        else:
            content = info
        if content is None:
            return None
        listed = follower.parse(
            "kho_test", pa, content, KhoSelftest.FoliosInfoInline, self.page_size, num
        )
        return SelfTest(csum, [(f.phys, f.order) for f in listed.folios] if listed else [])

    # LUO

    def luo(self, pa: int, size: int | None) -> LuoState | None:
        """The blob ``LUO`` in any of its forms."""
        start = self.follower.read("LUO", pa, 32)
        if start is None:
            return None
        if start[:4] == b"\xd0\x0d\xfe\xed":
            return self._luo_tree(pa)
        if size is not None and size >= 152 and start[:5] != b"luo-v":
            return self._luo_features(pa)
        return self._luo_struct(pa, size or 32, start)

    def _luo_tree(self, pa: int) -> LuoState | None:
        tree = self.follower.tree(pa, "LUO")
        if tree is None:
            return None
        compatible = self.value(tree, b"compatible", KhoFdtProps.LuoCompatible)
        if compatible == "luo-v2":
            return self._luo_v2(self.value(tree, b"luo-abi-header") or 0)
        state = LuoState(pa, compatible or "", self.value(tree, b"liveupdate-number") or 0)
        sessions, flbs = tree.child(b"luo-session"), tree.child(b"luo-flb")
        if sessions:
            kind = self.value(sessions, b"compatible", KhoFdtProps.LuoSessionCompatible)
            state.sessions_pa = self.value(sessions, b"luo-session-header") or 0
            if kind:
                state.sessions = list(
                    self.session_array(state.sessions_pa, name_only=kind == "luo-session-v1")
                )
        if flbs and self.value(flbs, b"compatible", KhoFdtProps.LuoFlbCompatible):
            state.flbs_pa = self.value(flbs, b"luo-flb-header") or 0
            state.flbs = list(self.flbs(state.flbs_pa))
        return state

    def _luo_v2(self, pa: int) -> LuoState | None:
        ser = self.follower.struct("luo_ser", pa, 24, Luo.SerV2)
        if ser is None:
            return None
        state = LuoState(pa, "luo-v2", ser.liveupdate_num, ser.sessions_pa, ser.flbs_pa)
        state.sessions = list(self.session_array(ser.sessions_pa))
        state.flbs = list(self.flbs(ser.flbs_pa))
        return state

    def _luo_struct(self, pa: int, size: int, start: bytes) -> LuoState | None:
        # The string has room for its NUL, in whole words; the size may be any other.
        width = min(len(start.partition(b"\0")[0]) // 8 * 8 + 8, 24)
        ser = self.follower.struct("luo_ser", pa, max(size, 24 + width), Luo.Ser, width)
        if ser is None:
            return None
        state = LuoState(pa, ser.compatible, ser.liveupdate_num, ser.sessions_pa, ser.flbs_pa)
        if ser.compatible == "luo-v3":
            state.sessions = list(self.session_array(ser.sessions_pa))
        else:
            contiguous = ser.compatible in ("luo-v4", "luo-v3-kho-block-v1")
            state.sessions = list(self.session_list(ser.sessions_pa, contiguous_files=contiguous))
        state.flbs = list(self.flbs(ser.flbs_pa))
        return state

    def _luo_features(self, pa: int) -> LuoState | None:
        ser = self.follower.struct("luo_ser", pa, 152, Luo.SerFeatures)
        if ser is None:
            return None
        state = LuoState(pa, "", ser.liveupdate_num, ser.sessions_pa, ser.flbs_pa)
        state.sessions = list(self.session_list(ser.sessions_pa))
        state.flbs = list(self.flbs(ser.flbs_pa))
        return state

    def session_array(self, pa: int, *, name_only: bool = False) -> Iterator[Session]:
        """Sessions of a contiguous array (up to 7.1). ``name_only`` is `luo-session-v1`."""
        if not pa:
            return
        parser = Luo.SessionArrayNameOnly if name_only else Luo.SessionArray
        # 16 pages, but the last of them need not be in the image.
        entry = 64 if name_only else 80
        count = int.from_bytes(self.follower.read("sessions", pa, 8) or b"", "little")
        size = min(8 + count * entry, 16 * self.page_size)
        array = self.follower.struct("sessions", pa, size, parser, self.page_size)
        for i, session in enumerate(array.sessions if array else []):
            at = pa + 8 + i * entry
            if name_only:
                yield Session(at, session.name.text, 0, 0)
            else:
                yield self._session(at, session, True)

    def session_list(self, first: int, *, contiguous_files: bool = False) -> Iterator[Session]:
        """Sessions of a block list (7.2 and later).

        From 7.2 on ``luo_ser`` is freed early, so that an image of a booted kernel may have
        the sessions but no longer their address; this takes it from elsewhere.
        """
        follower = self.follower
        pages = follower.pages("sessions", first, Luo.SessionBlock, lambda b: b.hdr.next)
        for at, session in follower.entries("sessions", pages, "sessions", 16, 80):
            yield self._session(at, session, contiguous_files)

    def _session(self, at: int, session: Any, contiguous_files: bool) -> Session:
        follower, files = self.follower, session.file_set_ser
        found: Iterator[tuple[int, Any]] = iter(())
        if files.files and contiguous_files:
            size = min(files.count * 64, 2 * self.page_size)
            array = follower.struct(
                "files", files.files, size, Luo.FileArray, self.page_size, files.count
            )
            if array:
                found = ((files.files + i * 64, f) for i, f in enumerate(array.files))
        elif files.files:
            pages = follower.pages("files", files.files, Luo.FileBlock, lambda b: b.hdr.next)
            found = follower.entries("files", pages, "files", 16, 64)
        result = Session(at, session.name.text, files.files, files.count)
        for pa, file in found:
            handler = file.compatible.text
            body = read_file(follower, handler, file.data, self.layouts)
            result.files.append(File(pa, handler, file.data, file.token, body))
        if len(result.files) != files.count:
            follower.problem(
                "inconsistent", "files", at, f"{len(result.files)} files, count {files.count}"
            )
        return result

    def flbs(self, pa: int) -> Iterator[Flb]:
        """FLBs of the page at ``pa``."""
        if not pa:
            return
        page = self.follower.struct("flbs", pa, self.page_size, Luo.FlbPage, self.page_size)
        for i, flb in enumerate(page.flbs if page else []):
            name = flb.name.text
            body = read_flb(self.follower, name, flb.data, self.layouts)
            yield Flb(pa + 16 + i * 64, name, flb.data, flb.count, body)


def read_image(
    memory: Memory,
    root_pa: int,
    page_size: int = 4096,
    layouts: Layouts | None = None,
    limits: Limits | None = None,
) -> Image:
    """Read the image whose root FDT is at ``root_pa``. What is wrong is in ``problems``."""
    return ImageReader(memory, page_size, layouts, limits).image(root_pa)
