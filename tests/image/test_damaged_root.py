"""A damaged root FDT: read as far as it goes where something leads to it, else named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi import fdt
from inspector.check import check
from inspector.decode import decode
from inspector.image import Image, NoRootError
from inspector.kernel import scenario
from inspector.kernel.incoming import libfdt
from inspector.memory.sparse import SparseMemory


def image_of(kernel: str) -> tuple[SparseMemory, Image]:
    memory = scenario.load(kernel).run().memory
    return memory, decode(memory)


def codes(image: Image) -> set[str]:
    return {finding.code for finding in check(image).findings}


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (0, b"\0", "no device tree here"),
        (0x38, b"\0\0\0\2", "END_NODE without a node"),
    ],
)
def test_what_is_wrong_with_it_is_said(offset: int, data: bytes, why: str) -> None:
    memory, image = image_of("linux-7.3")
    root = image.root.address
    memory.write(root + offset, data)
    with pytest.raises(NoRootError, match=f"no KHO root that can be read at {root:#x}.*{why}"):
        decode(memory)


def test_a_root_without_an_end_is_read_whole() -> None:
    memory, image = image_of("linux-7.3")
    end = token(image.root.tree, fdt.Tag.END)
    memory.write(image.root.address + end, b"\0\0\0\x77")
    again = decode(memory)
    assert again.luo is not None
    assert image.luo is not None
    assert [s.name for s in again.luo.sessions] == [s.name for s in image.luo.sessions]
    assert again.preserved is not None
    assert image.preserved is not None
    assert again.preserved.page_count == image.preserved.page_count
    assert codes(again) - codes(image) == {"KHO-ROOT-015"}
    found = next(f for f in check(again).findings if f.code == "KHO-ROOT-015")
    assert found.address == image.root.address + end
    assert "unknown tag 0x77" in found.message


def test_what_lies_before_the_damage_is_read() -> None:
    """The map and the first blob are still there; LUO, which comes behind, is not."""
    memory, image = image_of("linux-7.3")
    assert [blob.name for blob in image.blobs][:2] == [b"memblock", b"LUO"]
    begin = token(image.root.tree, fdt.Tag.BEGIN_NODE, b"LUO")
    memory.write(image.root.address + begin, b"\0\0\0\x77")
    again = decode(memory)
    assert again.luo is None
    assert [blob.name for blob in again.blobs] == [b"memblock"]
    assert again.preserved is not None
    assert image.preserved is not None
    assert again.preserved.page_count == image.preserved.page_count
    assert "KHO-ROOT-015" in codes(again)


def test_a_damaged_tree_of_luo_is_read_as_far_as_it_goes() -> None:
    memory, image = image_of("linux-6.19")
    blob = next(blob for blob in image.blobs if blob.name == b"LUO")
    tree = fdt.parse(memory.read(blob.address, 4096))
    memory.write(blob.address + token(tree, fdt.Tag.END), b"\0\0\0\x77")
    again = decode(memory)
    assert again.luo is not None
    assert image.luo is not None
    assert [s.name for s in again.luo.sessions] == [s.name for s in image.luo.sessions]
    assert codes(again) - codes(image) == {"KHO-LUO-001"}


def test_oddities_are_warnings() -> None:
    memory, image = image_of("linux-7.3")
    tree = image.root.tree
    properties = [t for t in tree.tokens() if t.tag == fdt.Tag.PROP]
    at = image.root.address + tree.header.off_dt_struct + properties[-1].offset + 8
    memory.write(at, b"\0\xff\xff\xff")
    again = decode(memory)
    found = [f for f in check(again).findings if f.code == "KHO-ROOT-016"]
    assert [f.address for f in found] == [at - 8]
    assert "leads to no string" in found[0].message


def token(tree: fdt.Fdt, tag: fdt.Tag, name: bytes = b"") -> int:
    """Offset in the blob of the first tag of a kind."""
    found = next(t for t in tree.tokens() if t.tag == tag and t.name == name)
    return tree.header.off_dt_struct + found.offset


@pytest.fixture(scope="module")
def page() -> bytes:
    memory, image = image_of("chain-everything")
    return memory.read(image.root.address, 4096)


@given(st.data())
def test_what_is_salvaged_is_what_libfdt_reads(page: bytes, data: st.DataObject) -> None:
    whole = fdt.parse(page)
    start, size = whole.header.off_dt_struct, whole.header.size_dt_struct
    broken = bytearray(page)
    for _ in range(data.draw(st.integers(1, 3))):
        at = start + 4 * data.draw(st.integers(0, size // 4 - 1))
        word = data.draw(st.sampled_from([0, 1, 2, 3, 4, 9, 0x77, 1 << 31]) | st.integers(0, 64))
        broken[at : at + 4] = word.to_bytes(4, "big")
    try:
        tree = fdt.parse(broken, salvage=True)
    except fdt.FdtError:
        with pytest.raises(fdt.FdtError):
            fdt.parse(broken)
        return
    assert tree.build() == bytes(broken)

    def read(at: int, size: int) -> bytes:
        return bytes(broken[at : at + size]).ljust(size, b"\0")

    compare(tree.root, libfdt.Node(libfdt.Blob(read, 0)))


def compare(ours: fdt.Node, theirs: libfdt.Node) -> None:
    for name, value in ours.properties.items():
        assert theirs.get(name) == value
    children = theirs.children
    for one, other in zip(ours.children, children, strict=False):
        assert one.name == other.name
        compare(one, other)
    assert len(children) >= len(ours.children)
