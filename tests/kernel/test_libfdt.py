"""Device trees as libfdt reads them: no further than asked, and no more checks than it makes."""

import pytest

from abi import fdt
from abi.fdt_write import FdtWriter
from inspector.kernel.incoming import libfdt

BASE = 0x1000


def blob() -> bytearray:
    writer = FdtWriter(0x1000)
    writer.begin_node("")
    writer.property_string("compatible", "kho-v4")
    writer.property_u64("map", 0x1234)
    for name in ("memblock", "luo@0"):
        writer.begin_node(name)
        writer.property_string("compatible", f"{name}-v1")
        writer.property_u64("at", len(name))
        writer.end_node()
    writer.end_node()
    return bytearray(writer.finish())


def read(data: bytes):
    """A reader that has no memory behind the data."""

    def at(address: int, size: int) -> bytes:
        assert address >= BASE
        if address + size > BASE + len(data):
            raise EOFError(address)
        return bytes(data[address - BASE : address - BASE + size])

    return at


def root(data: bytes) -> libfdt.Node:
    tree = libfdt.Blob(read(data), BASE)
    tree.check_header()
    return libfdt.Node(tree)


def word(data: bytearray, at: int, value: int) -> bytearray:
    data[at : at + 4] = value.to_bytes(4, "big")
    return data


def test_a_sound_tree_reads_as_the_whole_parser_reads_it():
    data = blob()
    ours, whole = root(data), fdt.parse(bytes(data)).root
    assert ours.compatible == whole.compatible == (b"kho-v4",)
    assert ours.get(b"map") == whole.get(b"map")
    assert ours.get(b"none") is None
    assert [n.name for n in ours.children] == [n.name for n in whole.children]
    assert ours.child(b"memblock").get(b"at") == whole.child(b"memblock").get(b"at")
    assert ours.child(b"nobody") is None


def test_a_name_without_a_unit_finds_a_node_that_has_one():
    assert root(blob()).child(b"luo").name == b"luo@0"
    assert root(blob()).child(b"mem") is None


def test_damage_behind_what_is_wanted_does_no_harm():
    data = blob()
    end = fdt.peek(bytes(data)).off_dt_struct + fdt.peek(bytes(data)).size_dt_struct
    at = data.index(b"luo@0") - 4
    data[at:end] = b"\xff" * (end - at)
    with pytest.raises(fdt.FdtError):
        fdt.parse(bytes(data))
    assert root(data).child(b"memblock").get(b"at") == (8).to_bytes(8, "little")
    assert root(data).child(b"luo") is None
    assert len(root(data).children) == 1


def test_a_tree_that_is_cut_off_is_read_up_to_the_cut():
    data = blob()
    at = data.index(b"luo@0") - 4
    word(data, 36, at - fdt.peek(bytes(data)).off_dt_struct)
    assert root(data).child(b"memblock") is not None
    assert root(data).child(b"luo") is None


def test_the_string_behind_a_property_counts_if_a_zero_follows():
    """``compatible`` without its NUL, which is in the padding instead."""
    data = blob()
    at = data.index(b"kho-v4\0") - 8
    assert int.from_bytes(data[at : at + 4], "big") == 7
    assert root(word(data, at, 6)).compatible == (b"kho-v4",)
    assert root(word(data, at, 5)).compatible == ()


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0xD00DFEEE, "magic"),
        (4, 20, "size of 20"),
        (4, 0x80000000, "size of 0x80000000"),
        (8, 0xFFFFFFF0, "structure"),
        (12, 0xFFFF, "strings"),
        (16, 42, "reservations are not aligned"),
        (20, 1, "version 1"),
        (24, 18, "compatible with 18"),
    ],
)
def test_headers_that_are_refused(at, value, message):
    with pytest.raises(fdt.FdtError, match=message):
        root(word(blob(), at, value))


def test_the_structure_begins_with_the_root():
    data = blob()
    word(data, fdt.peek(bytes(data)).off_dt_struct, 4)  # a NOP
    with pytest.raises(fdt.FdtError, match="no node"):
        root(data)


def test_a_blob_that_is_not_aligned():
    data = blob()

    def shifted(address: int, size: int) -> bytes:
        return read(data)(address - 4, size)

    with pytest.raises(fdt.FdtError, match="aligned"):
        libfdt.Blob(shifted, BASE + 4).check_header()


def test_a_walk_without_an_end_ends():
    """NOPs as far as the size reaches."""
    header = fdt.peek(bytes(blob()))
    data = blob()
    at = data.index(b"memblock") - 4
    data[at:] = b"\0\0\0\4" * (1 << 19)
    word(word(data, 4, len(data)), 36, len(data) - header.off_dt_struct)
    word(word(data, 12, header.off_dt_struct), 32, 0)
    tree = libfdt.Blob(read(data), BASE)
    with pytest.raises(fdt.FdtError, match="without an end"):
        tree.subnode(0, b"memblock")


def test_what_the_reader_raises_comes_through():
    data = blob()
    word(data, 4, 0x2000)
    word(data, 36, 0x1800)
    at = data.index(b"luo@0") - 4
    data[at:] = b"\0\0\0\4" * ((len(data) - at) // 4)
    with pytest.raises(EOFError):
        root(data).child(b"luo")
