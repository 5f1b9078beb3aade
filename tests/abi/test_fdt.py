"""Device trees: real blobs, bad blobs, every version, dtc as an independent reader."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import fdt
from abi.fdt import AnomalyKind, Fdt, FdtError, Limits, Node, Tag, Token
from abi.fdt_write import new

DATA = Path(__file__).parent.parent / "data" / "fdt"
REAL = sorted(path.name for path in DATA.iterdir())


def real(name: str) -> bytes:
    return (DATA / name).read_bytes()


@pytest.mark.parametrize("name", REAL)
def test_real_blobs_rebuild_exactly(name: str) -> None:
    data = real(name)
    tree = fdt.parse(data)
    assert tree.anomalies == ()
    assert tree.build() == data
    assert tree.blob == data[: tree.header.totalsize]
    assert tree.with_tokens(tree.tokens()) == tree
    assert fdt.parse(memoryview(data)) == tree


def test_root_of_a_real_kernel() -> None:
    tree = fdt.parse(real("root-7.3.page"))
    assert tree.root.compatible == (b"kho-v4",)
    assert fdt.native_u64(tree.root.properties[b"preserved-memory-map"]) == 0x423000
    assert [child.name for child in tree.root.children] == [
        b"memblock",
        b"LUO",
        b"kho_test",
        b"kexec-metadata",
    ]
    luo = tree.node("/LUO")
    assert luo is not None
    assert {name: fdt.native_u64(value) for name, value in luo.properties.items()} == {
        b"blob-size": 32,
        b"preserved-data": 0xE05000,
    }
    assert tree.node("/nothing") is None
    assert tree.node("/LUO/nothing/more") is None
    assert tree.node("/") is tree.root
    assert [path for path, _ in tree.root.walk()][:3] == [b"/", b"/memblock", b"/LUO"]


def test_boot_device_tree_of_arm64() -> None:
    tree = fdt.parse(real("boot-arm64-7.3.dtb"))
    chosen = tree.node("/chosen")
    assert chosen is not None
    counts = fdt.cell_counts(tree.root)
    assert counts == (2, 2)
    assert fdt.cells(chosen.properties[b"linux,kho-fdt"], *counts) == ((0x40999000, 4096),)
    assert fdt.cells(chosen.properties[b"linux,kho-scratch"], *counts) == ((0x5EFF0000, 48),)
    assert tree.reserved == (fdt.Reservation(0x5D5E0000, 362628),)


def test_peek() -> None:
    data = real("root-7.3.page")
    header = fdt.peek(data[:40])
    assert header is not None
    assert header.totalsize == 405
    assert fdt.peek(data[:39]) is None
    assert fdt.peek(b"\0" * 40) is None
    assert fdt.peek(data[:4] + b"\xff" * 36) is None


def blob(
    structure: bytes, strings: bytes = b"", *, version: int = 17, reserve: bytes = bytes(16)
) -> bytes:
    """A blob of the plainest order, written without the code under test."""
    length = {17: 40, 16: 36, 3: 36, 2: 32}[version]
    start = length + (-length % 8)
    at = start + len(reserve)
    total = at + len(structure) + len(strings)
    words = [0xD00DFEED, total, at, at + len(structure), start, version, min(version, 16), 0]
    words += [len(strings), len(structure)]
    header = struct.pack(">10I", *words)[:length].ljust(start, b"\0")
    return header + reserve + structure + strings


BEGIN, END_NODE, PROP, NOP, END = (struct.pack(">I", n) for n in (1, 2, 3, 4, 9))
ROOT = BEGIN + bytes(4)


def prop(name: int, value: bytes, pad: bytes | None = None) -> bytes:
    fill = bytes(-len(value) % 4) if pad is None else pad
    return PROP + struct.pack(">II", len(value), name) + value + fill


def test_everything_that_can_vary_survives() -> None:
    structure = (
        NOP
        + ROOT
        + prop(2, b"xy", b"\xaa\xbb")
        + NOP
        + BEGIN
        + b"n\0\x11\x22"
        + prop(0, b"")
        + END_NODE
        + END_NODE
        + NOP
        + END
        + b"tail"
    )
    data = blob(structure, b"a\0b\0unused\0")
    tree = fdt.parse(data)
    assert tree.root == Node(b"", {b"b": b"xy"}, (Node(b"n", {b"a": b""}),))
    assert tree.build() == data
    assert [token.tag for token in tree.tokens()] == [4, 1, 3, 4, 1, 3, 2, 2, 4, 9]
    assert tree.tokens()[2].padding == b"\xaa\xbb"
    assert fdt.parse(data + b"rest of the page").build() == data + b"rest of the page"


def test_blocks_in_any_order_with_gaps() -> None:
    strings, structure, reserve = b"q\0", ROOT + prop(0, b"1234") + END_NODE + END, bytes(16)
    data = bytearray(200)
    data[44:46] = strings
    data[60 : 60 + len(structure)] = structure
    data[120:136] = reserve
    data[150:155] = b"slack"
    data[:40] = struct.pack(
        ">10I", 0xD00DFEED, 200, 60, 44, 120, 17, 16, 3, len(strings), len(structure)
    )
    tree = fdt.parse(bytes(data))
    assert tree.root.properties == {b"q": b"1234"}
    assert tree.header.boot_cpuid_phys == 3
    assert tree.build() == data


@pytest.mark.parametrize("version", [2, 3, 16, 17])
def test_versions(version: int) -> None:
    structure = ROOT + prop(0, b"1234") + END_NODE + END
    data = blob(structure, b"p\0", version=version)
    tree = fdt.parse(data)
    assert tree.root.properties == {b"p": b"1234"}
    assert tree.build() == data


def test_values_are_aligned_before_version_16() -> None:
    # Tag, length and name are 12 bytes: behind the 8 of the root, the value is at 20, then 24.
    structure = ROOT + PROP + struct.pack(">II", 8, 0) + b"GAP!" + b"12345678" + END_NODE + END
    data = blob(structure, b"p\0", version=3)
    tree = fdt.parse(data)
    assert tree.root.properties == {b"p": b"12345678"}
    assert tree.build() == data


GOOD = ROOT + prop(0, b"v") + END_NODE + END


@pytest.mark.parametrize(
    ("word", "value", "says", "offset"),
    [
        (0, 0xD00DFEEE, "magic", 0),
        (1, 39, "totalsize", 4),
        (1, 0x80000000, "totalsize", 4),
        (1, 4000, "cut short", -1),
        (2, 39, "structure block", 8),
        (2, 0xFFFFFFFF, "structure block", 8),
        (3, 0xFFFFFFFF, "strings block", 12),
        (4, 0x7FFFFFFF, "reservation map", 16),
        (5, 1, "too old", 20),
        (5, 15, "below", 20),
        (6, 18, "reader", 24),
        (8, 0xFFFFFFFF, "strings block", 12),
        (9, 0xFFFFFFFF, "structure block", 8),
        (9, 8, "without END", 64),
    ],
)
def test_bad_headers(word: int, value: int, says: str, offset: int) -> None:
    data = bytearray(blob(GOOD, b"p\0"))
    offset = len(data) if offset < 0 else offset
    struct.pack_into(">I", data, 4 * word, value)
    with pytest.raises(FdtError, match=says) as caught:
        fdt.parse(bytes(data))
    assert caught.value.offset == offset
    assert fdt.peek(bytes(data[:40])) is None or says in ("cut short", "without END")


@pytest.mark.parametrize(
    ("structure", "says", "offset"),
    [
        (b"", "without END", 0),
        (ROOT, "without END", 8),
        (END, "before the root", 0),
        (END_NODE, "without a node", 0),
        (prop(0, b""), "outside of a node", 0),
        (ROOT + END_NODE + ROOT + END_NODE + END, "second root", 12),
        (ROOT + END_NODE + prop(0, b"") + END, "outside of a node", 12),
        (BEGIN + b"abcd", "name without end", 4),
        (ROOT + PROP + struct.pack(">II", 0xFFFFFFFF, 0) + END, "runs out", 8),
        (ROOT + PROP + b"\0\0", "without END", 14),
        (ROOT + struct.pack(">I", 5), "unknown tag 0x5", 8),
        (ROOT * 65 + END_NODE * 65 + END, "deeper than 64", 8 * 64),
    ],
)
def test_bad_structures(structure: bytes, says: str, offset: int) -> None:
    with pytest.raises(FdtError, match=says) as caught:
        fdt.parse(blob(structure, b"p\0"))
    assert caught.value.offset == 56 + offset


def test_cut_short_anywhere() -> None:
    data = fdt.parse(real("root-7.3.page")).blob
    for length in range(len(data)):
        with pytest.raises(FdtError):
            fdt.parse(data[:length])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (blob(ROOT + prop(9, b"v") + END_NODE + END, b"p\0"), AnomalyKind.BAD_PROPERTY_NAME),
        (blob(ROOT + prop(0, b"v") + END_NODE + END, b"p"), AnomalyKind.BAD_PROPERTY_NAME),
        (blob(ROOT + prop(0, b"v") * 2 + END_NODE + END, b"p\0"), AnomalyKind.DUPLICATE_PROPERTY),
        (
            blob(ROOT + (BEGIN + b"n\0\0\0" + END_NODE) * 2 + END_NODE + END),
            AnomalyKind.DUPLICATE_NODE,
        ),
        (
            blob(ROOT + BEGIN + b"n\0\0\0" + END_NODE + prop(0, b"") + END_NODE + END, b"p\0"),
            AnomalyKind.PROPERTY_AFTER_NODE,
        ),
        (blob(BEGIN + b"n\0\0\0" + END_NODE + END), AnomalyKind.ROOT_HAS_NAME),
        (blob(GOOD, b"p\0", reserve=b""), AnomalyKind.OVERLAPPING_BLOCKS),
    ],
)
def test_anomalies(data: bytes, kind: AnomalyKind) -> None:
    tree = fdt.parse(data)
    assert kind in {anomaly.kind for anomaly in tree.anomalies}
    assert tree.build() == data


def test_budgets() -> None:
    data = blob(ROOT + (BEGIN + b"n\0\0\0" + END_NODE) * 9 + END_NODE + END)
    with pytest.raises(FdtError, match="more than 9 nodes"):
        fdt.parse(data, Limits(nodes=9))
    data = blob(ROOT + prop(0, b"") * 9 + END_NODE + END, b"p\0")
    with pytest.raises(FdtError, match="more than 8 properties"):
        fdt.parse(data, Limits(properties=8))
    with pytest.raises(FdtError, match="limit of 100"):
        fdt.parse(data, Limits(size=100))
    data = blob(GOOD, b"p\0", reserve=b"\1" * 160 + bytes(16))
    with pytest.raises(FdtError, match="more than 4 memory reservations"):
        fdt.parse(data, Limits(reservations=4))
    assert len(fdt.parse(data).reserved) == 10
    data = blob(GOOD, b"p" * 2000 + b"\0")
    with pytest.raises(FdtError, match="longer than 1024"):
        fdt.parse(data)


@pytest.mark.parametrize(
    "data",
    [
        # Every property has a different, long name: bounded by the sum of names.
        blob(
            ROOT + b"".join(prop(i, b"") for i in range(200_000)) + END_NODE + END,
            (b"x" * 1023 + b"\0") * 200,
        ),
        # No name ever ends.
        blob(
            ROOT + b"".join(prop(0x20000 - i % 900, b"") for i in range(200_000)) + END_NODE + END,
            b"x" * 0x20001,
        ),
        blob(ROOT + NOP * 900_000 + END_NODE + END),
        blob(GOOD, b"p\0", reserve=b"\1" * (3 << 20)),
        blob(ROOT + (BEGIN + bytes(4) + END_NODE) * 300_000 + END_NODE + END),
    ],
)
def test_hostile_blobs_end_soon(data: bytes) -> None:
    start = time.process_time()
    try:
        tree = fdt.parse(data)
    except FdtError:
        pass
    else:
        assert tree.build() == data
    assert time.process_time() - start < 2.0


def test_too_much_data_is_refused_not_copied() -> None:
    with pytest.raises(FdtError, match="exceeds the limit"):
        fdt.parse(blob(GOOD, b"p\0") + bytes(5 << 20))


def test_edits_through_tokens() -> None:
    tree = fdt.parse(real("root-7.3.page"))
    tokens = list(tree.tokens())
    assert tokens[1].value == b"kho-v4\0"
    tokens[1] = tokens[1]._replace(value=b"kho-v4;radix-v1\0", padding=b"")
    tokens.insert(1, Token(Tag.NOP))
    edited = tree.with_tokens(tokens)
    assert edited.root.compatible == (b"kho-v4;radix-v1",)
    assert edited.root.children == tree.root.children
    assert edited.header.totalsize == tree.header.totalsize + 12
    with pytest.raises(FdtError):
        tree.with_tokens(tokens[:-1])


def test_values() -> None:
    assert fdt.stringlist(b"a\0bc\0\0") == (b"a", b"bc", b"")
    assert fdt.stringlist(b"") == ()
    with pytest.raises(FdtError):
        fdt.stringlist(b"a")
    assert Node(b"", {b"compatible": b"unterminated"}).compatible == ()
    assert fdt.native_u64(bytes(range(8))) == 0x0706050403020100
    assert fdt.native_u64(bytes(range(8)), "big") == 0x0001020304050607
    assert fdt.native_u32(b"\1\0\0\0") == 1
    for length in (0, 7, 9):
        with pytest.raises(FdtError):
            fdt.native_u64(bytes(length))
    assert fdt.cells(bytes(range(12)), 2, 1) == ((0x0001020304050607, 0x08090A0B),)
    assert fdt.cells(bytes(16), 1, 1) == ((0, 0), (0, 0))
    with pytest.raises(FdtError):
        fdt.cells(bytes(13), 2, 1)
    with pytest.raises(FdtError):
        fdt.cells(b"", 0)
    with pytest.raises(FdtError):
        fdt.cells(bytes(20), 5)
    assert fdt.cell_counts(Node(b"")) == (2, 1)
    assert fdt.cell_counts(Node(b"", {b"#address-cells": b"\xff" * 4})) == (2, 1)


NAMES = st.binary(min_size=1, max_size=12).filter(lambda b: b"\0" not in b)


def nodes(depth: int) -> st.SearchStrategy[Node]:
    children = (
        st.just(())
        if depth == 0
        else st.lists(nodes(depth - 1), max_size=3, unique_by=lambda n: n.name).map(tuple)
    )
    return st.builds(
        Node, NAMES, st.dictionaries(NAMES, st.binary(max_size=20), max_size=4), children
    )


TREES = nodes(3).map(lambda n: Node(b"", n.properties, n.children))


@settings(max_examples=150, deadline=None)
@given(TREES, st.lists(st.tuples(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=3))
def test_random_trees_round_trip(root: Node, reservations: list[tuple[int, int]]) -> None:
    tree = new(root, reservations=reservations)
    assert tree.root == root
    assert list(tree.root.properties) == list(root.properties)
    assert [tuple(r) for r in tree.reserved] == reservations
    assert tree.anomalies == ()
    again = fdt.parse(tree.build())
    assert again == tree


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(REAL).map(real),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_mutated_blobs_raise_or_rebuild(
    data: bytes, changes: list[tuple[float, int]], near_start: bool
) -> None:
    mutated = bytearray(data)
    span = min(len(data), struct.unpack_from(">I", data, 4)[0]) if near_start else len(data)
    for where, value in changes:
        mutated[min(int(where * span), span - 1)] = value
    check_any(bytes(mutated))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=40), st.sampled_from([2, 3, 16, 17]))
def test_arbitrary_structures_raise_or_rebuild(body: bytes, strings: bytes, version: int) -> None:
    check_any(blob(ROOT + body, strings, version=version))
    words = b"".join(struct.pack(">I", 1 + byte % 9) for byte in body)
    check_any(blob(ROOT + words + END_NODE + END, strings, version=version))


def check_any(data: bytes) -> Fdt | None:
    problem = None
    try:
        tree = fdt.parse(data)
    except FdtError as error:
        problem = error
    if problem is not None:
        assert 0 <= problem.offset <= 0xFFFFFFFF
        assert "\n" not in str(problem)
        return None
    assert tree.build() == data
    joined = tree.with_tokens(tree.tokens())
    assert joined.build() == data
    return tree


dtc = pytest.mark.skipif(shutil.which("dtc") is None, reason="needs dtc (device-tree-compiler)")


@dtc
@pytest.mark.parametrize("name", REAL)
def test_dtc_reads_what_we_read(name: str, tmp_path: Path) -> None:
    """dtc -> source -> dtc -> blob: another layout, the same tree."""
    tree = fdt.parse(real(name))
    (tmp_path / "in.dtb").write_bytes(tree.build())
    for source, target, one, two in (("dtb", "dts", "in", "mid"), ("dts", "dtb", "mid", "out")):
        subprocess.run(
            ["dtc", "-q", "-I", source, "-O", target, "-o", f"{two}.{target}", f"{one}.{source}"],
            cwd=tmp_path,
            check=True,
        )
    again = fdt.parse((tmp_path / "out.dtb").read_bytes())
    assert again.root == tree.root
    assert again.reserved == tree.reserved


@dtc
def test_dtc_versions(tmp_path: Path) -> None:
    """Older formats as dtc writes them, which have full paths as names before version 16."""
    source = '/dts-v1/; / { a = <1 2>; b = "s"; n@1 { c = [01 02 03]; }; };'
    (tmp_path / "in.dts").write_text(source)
    for version in (2, 3, 16, 17):
        out = tmp_path / f"{version}.dtb"
        command = ["dtc", "-q", "-I", "dts", "-O", "dtb", "-V", str(version), "-o", str(out)]
        subprocess.run([*command, "-p", "64", str(tmp_path / "in.dts")], check=True)
        tree = fdt.parse(out.read_bytes())
        assert tree.build() == out.read_bytes()
        properties = dict(tree.root.properties)
        assert version < 16 or b"name" not in properties
        properties.pop(b"name", None)  # what dtc adds in versions before 16
        assert properties == {b"a": bytes([0, 0, 0, 1, 0, 0, 0, 2]), b"b": b"s\0"}
        child = tree.node("/n@1")
        assert child is not None
        assert child.properties[b"c"] == b"\1\2\3"
