"""Building device trees: real kernels' pages to the last stale byte, and libfdt as oracle."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import fdt
from abi.fdt import FdtError, Node
from abi.fdt_write import FdtEditor, FdtWriter, new

DATA = Path(__file__).parent.parent / "data" / "fdt"


def page(name: str) -> bytes:
    return (DATA / name).read_bytes()


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_root_of_6_17_is_written_in_one_go() -> None:
    writer = FdtWriter(4096)
    writer.begin_node("")
    writer.property_string("compatible", "kho-v1")
    writer.property_u64("preserved-memory-map", 0xDFE000)
    for name, address in (("kho_test", 0x444000), ("memblock", 0xDCE000)):
        writer.begin_node(name)
        writer.property_u64("fdt", address)
        writer.end_node()
    writer.end_node()
    assert writer.finish() == fdt.parse(page("root-6.17.page")).blob
    assert writer.page() == page("root-6.17.page")


def test_memblock_and_luo_blobs() -> None:
    writer = FdtWriter(4096)
    writer.begin_node("")
    writer.property_string("compatible", "memblock-v1")
    for name, start, size in (
        ("labtrace", 0x1FC34000, 0x100000),
        ("laboops", 0x1EE00000, 0x400000),
    ):
        writer.begin_node(name)
        writer.property_string("compatible", "reserve-mem-v1")
        writer.property_u64("start", start)
        writer.property_u64("size", size)
        writer.end_node()
    writer.end_node()
    writer.finish()
    assert writer.page() == page("memblock-6.17.page")

    writer = FdtWriter(4096)
    writer.begin_node("")
    writer.property_string("compatible", "luo-v1")
    writer.property("liveupdate-number", u64(1))
    for part, version, address in (("session", "v2", 0x2050000), ("flb", "v1", 0x93E000)):
        writer.begin_node(f"luo-{part}")
        writer.property_string("compatible", f"luo-{part}-{version}")
        writer.property_u64(f"luo-{part}-header", address)
        writer.end_node()
    writer.end_node()
    assert writer.finish() == fdt.parse(page("luo-7.1.page")).blob
    assert writer.page() == page("luo-7.1.page")


def edited_root(compatible: str, tree: int, blobs: list[tuple[str, dict[str, int]]]) -> FdtEditor:
    """What the kernel does from 6.19 on: each blob is added to a packed root."""
    writer = FdtWriter(4096)
    writer.begin_node("")
    writer.property_string("compatible", compatible)
    writer.property_u64("preserved-memory-map", tree)
    writer.end_node()
    writer.finish()
    editor = FdtEditor(writer.page(), 4096)
    for name, properties in blobs:
        editor = FdtEditor(editor.page(), 4096)
        editor.add_node("/", name)
        for key, value in properties.items():
            editor.set_property(f"/{name}", key, u64(value))
        editor.pack()
    return editor


@pytest.mark.parametrize(
    ("name", "compatible", "tree", "blobs"),
    [
        (
            "root-6.19.page",
            "kho-v1",
            0xF77000,
            [
                ("kho_test", {"fdt": 0x5B6000}),
                ("LUO", {"fdt": 0xDDE000}),
                ("memblock", {"fdt": 0xDE0000}),
            ],
        ),
        (
            "root-7.1.page",
            "kho-v3",
            0x69D000,
            [
                ("kexec-metadata", {"preserved-data": 0x712000, "blob-size": 73}),
                ("LUO", {"preserved-data": 0x938000, "blob-size": 311}),
            ],
        ),
        (
            "root-7.3.page",
            "kho-v4",
            0x423000,
            [
                ("kexec-metadata", {"preserved-data": 0x445000, "blob-size": 73}),
                ("kho_test", {"preserved-data": 0x4B0000, "blob-size": 240}),
                ("LUO", {"preserved-data": 0xE05000, "blob-size": 32}),
                ("memblock", {"preserved-data": 0xE07000, "blob-size": 298}),
            ],
        ),
    ],
)
def test_roots_that_were_edited(
    name: str, compatible: str, tree: int, blobs: list[tuple[str, dict[str, int]]]
) -> None:
    editor = edited_root(compatible, tree, blobs)
    assert editor.blob() == fdt.parse(page(name)).blob
    assert editor.page() == page(name)


def test_edits() -> None:
    editor = FdtEditor(new({b"a": b"1234", b"b": b"56"}).build(), 512)
    editor.add_node("/", "x")
    editor.add_node("/x", "y")
    editor.set_property("/x/y", "b", b"deep")
    editor.set_property("/", "a", b"longer than before")
    assert editor.delete_property("/", "b")
    assert not editor.delete_property("/", "b")
    assert len(editor.blob()) == 512
    tree = fdt.parse(editor.pack())
    assert tree.root.properties == {b"a": b"longer than before"}
    assert tree.root.children == (Node(b"x", {}, (Node(b"y", {b"b": b"deep"}),)),)
    assert tree.anomalies == ()
    editor.delete_node("/x")
    assert fdt.parse(editor.pack()).root.children == ()


def test_refusals() -> None:
    writer = FdtWriter(200)
    with pytest.raises(FdtError, match="no node is open"):
        writer.property("a", b"")
    with pytest.raises(FdtError, match="not complete"):
        writer.finish()
    writer.begin_node("")
    with pytest.raises(FdtError, match="not complete"):
        writer.finish()
    with pytest.raises(FdtError, match="no space"):
        writer.property("a", bytes(200))
    with pytest.raises(FdtError, match="NUL"):
        writer.begin_node(b"a\0b")
    with pytest.raises(FdtError, match="before the first node"):
        writer.reserve(1, 1)
    with pytest.raises(FdtError, match="not finished"):
        writer.page()
    writer.end_node()
    with pytest.raises(FdtError, match="no node is open"):
        writer.end_node()
    writer.finish()
    with pytest.raises(FdtError, match="is finished"):
        writer.begin_node("x")
    with pytest.raises(FdtError, match="holds no device tree"):
        FdtWriter(40)

    small = new({b"a": b"1234"}).build()
    with pytest.raises(FdtError, match="do not fit"):
        FdtEditor(small, len(small) - 1)
    editor = FdtEditor(small, len(small) + 18)
    before = editor.blob()
    with pytest.raises(FdtError, match="no space"):
        editor.set_property("/", "bb", b"12345")
    with pytest.raises(FdtError, match="no node b'x'"):
        editor.set_property("/x", "a", b"")
    assert fdt.parse(editor.blob()).root == fdt.parse(before).root
    editor.add_node("/", "x")
    with pytest.raises(FdtError, match="exists"):
        editor.add_node("/", "x")


# libfdt itself, where it is installed, does the same operations on the same buffers.

_PATH = ctypes.util.find_library("fdt")
libfdt = ctypes.CDLL(_PATH) if _PATH else None
needs_libfdt = pytest.mark.skipif(libfdt is None, reason="needs libfdt (libfdt1)")

NAMES = st.text(alphabet="abc-", min_size=1, max_size=5).map(str.encode)
VALUES = st.binary(max_size=12)
SEQUENTIAL = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), NAMES),
        st.tuples(st.just("property"), NAMES, VALUES),
        st.tuples(st.just("end")),
    ),
    max_size=30,
)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), NAMES),
        st.tuples(st.just("set"), st.integers(0, 9), NAMES, VALUES),
        st.tuples(st.just("delete"), st.integers(0, 9), NAMES),
        st.tuples(st.just("remove"), st.integers(1, 9)),
        st.tuples(st.just("pack")),
    ),
    max_size=25,
)


def write_both(operations: list[tuple[object, ...]], size: int) -> tuple[bytes, bytes]:
    """Sequential write by libfdt and by us; both stop at the first operation that is refused."""
    assert libfdt is not None
    buffer = ctypes.create_string_buffer(size)
    ours = FdtWriter(size)
    assert libfdt.fdt_create(buffer, size) == 0
    assert libfdt.fdt_finish_reservemap(buffer) == 0
    depth = 0
    for operation in [("begin", b""), *operations]:
        match operation:
            case ("begin", bytes(name)):
                call = (ours.begin_node, libfdt.fdt_begin_node, (name,), (name,))
                change = 1
            case ("property", bytes(name), bytes(value)):
                arguments = (name, value, len(value))
                call = (ours.property, libfdt.fdt_property, (name, value), arguments)
                change = 0
            case _:
                if depth == 1:
                    continue
                call = (ours.end_node, libfdt.fdt_end_node, (), ())
                change = -1
        status = call[1](buffer, *call[3])
        if status:
            with pytest.raises(FdtError):
                call[0](*call[2])  # type: ignore[operator]
            return b"", b""
        call[0](*call[2])  # type: ignore[operator]
        depth += change
    for _ in range(depth):
        if libfdt.fdt_end_node(buffer):
            with pytest.raises(FdtError):
                ours.end_node()
            return b"", b""
        ours.end_node()
    if libfdt.fdt_finish(buffer):
        with pytest.raises(FdtError):
            ours.finish()
        return b"", b""
    ours.finish()
    return ours.page(), buffer.raw


@needs_libfdt
@settings(max_examples=200, deadline=None)
@given(SEQUENTIAL, st.sampled_from([160, 256, 4096]))
def test_sequential_write_equals_libfdt(operations: list[tuple[object, ...]], size: int) -> None:
    ours, theirs = write_both(operations, size)
    assert ours == theirs


@needs_libfdt
@settings(max_examples=200, deadline=None)
@given(SEQUENTIAL, EDITS, st.sampled_from([300, 400, 4096]))
def test_edits_equal_libfdt(
    operations: list[tuple[object, ...]], edits: list[tuple[object, ...]], size: int
) -> None:
    assert libfdt is not None
    start, _ = write_both(operations, 300)
    if not start:
        return
    buffer = ctypes.create_string_buffer(start, size)
    assert libfdt.fdt_open_into(buffer, buffer, size) == 0
    editor = FdtEditor(start, size)
    assert editor.page() == buffer.raw
    for edit in edits:
        paths = [path for path, _ in fdt.parse(editor.blob()).root.walk()]
        # Sibling nodes may share a name; libfdt and we both take the first.
        node = paths[int(str(edit[1])) % len(paths)] if len(edit) > 1 else b"/"
        offset = libfdt.fdt_path_offset(buffer, node)
        if edit[0] in ("add", "set", "delete") and offset < 0:
            continue
        match edit:
            case ("add", _, bytes(name)):
                status = libfdt.fdt_add_subnode(buffer, offset, name)
                act = partial(editor.add_node, node, name)
                status = min(status, 0)
            case ("set", _, bytes(name), bytes(value)):
                status = libfdt.fdt_setprop(buffer, offset, name, value, len(value))
                act = partial(editor.set_property, node, name, value)
            case ("delete", _, bytes(name)):
                status = min(0, libfdt.fdt_delprop(buffer, offset, name))
                assert editor.delete_property(node, name) == (status == 0)
                continue
            case ("remove", _):
                if node == b"/":
                    continue
                status = libfdt.fdt_del_node(buffer, offset)
                act = partial(editor.delete_node, node)
            case _:
                assert libfdt.fdt_pack(buffer) == 0
                assert editor.pack() == buffer.raw[: len(editor.blob())]
                assert libfdt.fdt_open_into(buffer, buffer, size) == 0
                editor = FdtEditor(editor.page(), size)
                continue
        if status:
            with pytest.raises(FdtError):
                act()
        else:
            act()
        assert fdt.parse(editor.blob()).root == fdt.parse(buffer.raw).root
        assert editor.page() == buffer.raw


@needs_libfdt
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["root-7.3.page", "boot-arm64-7.3.dtb"]),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 255)), max_size=3),
)
def test_header_check_equals_libfdt(name: str, changes: list[tuple[int, int]]) -> None:
    """peek() accepts what fdt_check_header accepts (which has no look at the strings of v2)."""
    assert libfdt is not None
    data = bytearray(page(name))
    for at, value in changes:
        data[at] = value
    buffer = ctypes.create_string_buffer(bytes(data), len(data) + 8)
    accepted = libfdt.fdt_check_header(buffer) == 0
    assert (fdt.peek(bytes(data[:40])) is not None) == accepted
