"""BTF: hand-made blobs of both byte orders, hostile ones, and gcc and pahole as makers."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.layouts import btf as btf_module
from inspector.layouts.btf import Btf, BtfError, Kind
from inspector.layouts.measured import MeasuredField, MeasuredStruct

DATA = Path(__file__).parent.parent / "data" / "btf"


class Maker:
    """The simplest writer of BTF there can be; ids count from ``first``."""

    def __init__(self, order: str = "<", first: int = 1, strings: int = 0) -> None:
        self.order = order
        self.types = b""
        self.strings = b"" if strings else b"\0"
        self.base_strings = strings
        self.next = first

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.base_strings + len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(
        self, kind: int, name: str = "", size: int = 0, *words: int, n: int = 0, flag: bool = False
    ) -> int:
        info = n | kind << 24 | flag << 31
        words = (self.name(name), info, size, *words)
        self.types += struct.pack(f"{self.order}{len(words)}I", *(w & 0xFFFFFFFF for w in words))
        self.next += 1
        return self.next - 1

    def struct(
        self,
        name: str,
        size: int,
        members: list[tuple[str, int, int]],
        *,
        kind: int = Kind.STRUCT,
        flag: bool = False,
    ) -> int:
        words = [w for m, t, o in members for w in (self.name(m), t, o)]
        return self.add(kind, name, size, *words, n=len(members), flag=flag)

    def blob(self, layout: bytes = b"") -> bytes:
        head = 32 if layout else 24
        words = [0, len(self.types), len(self.types) + len(layout), len(self.strings)]
        if layout:
            words += [len(self.types), len(layout)]
        header = struct.pack(f"{self.order}HBBI{len(words)}I", 0xEB9F, 1, 0, head, *words)
        return header + self.types + layout + self.strings


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind(order: str) -> None:
    make = Maker(order)
    ulong = make.add(Kind.INT, "long unsigned int", 8, 64)
    u64 = make.add(Kind.TYPEDEF, "u64", ulong)
    char = make.add(Kind.INT, "char", 1, 0x01000008)
    boolean = make.add(Kind.INT, "_Bool", 1, 0x04000008)
    name = make.add(Kind.ARRAY, "", 0, char, ulong, 16)
    flexible = make.add(Kind.ARRAY, "", 0, u64, ulong, 0)
    enum = make.add(Kind.ENUM, "e", 4, make.name("A"), 1, make.name("B"), -1, n=2, flag=True)
    big = [make.name("C"), 0, 1]
    enum64 = make.add(Kind.ENUM64, "e64", 8, *big, n=1)
    const = make.add(Kind.CONST, "", char)
    pointer = make.add(Kind.PTR, "", const)
    volatile = make.add(Kind.VOLATILE, "", pointer)
    restrict = make.add(Kind.RESTRICT, "", pointer)
    proto = make.add(Kind.FUNC_PROTO, "", 0, make.name("x"), u64, n=1)
    callback = make.add(Kind.PTR, "", proto)
    make.add(Kind.FUNC, "f", proto, n=1)
    forward = make.add(Kind.FWD, "other", 0)
    tag = make.add(Kind.TYPE_TAG, "user", forward)
    to_forward = make.add(Kind.PTR, "", tag)
    double = make.add(Kind.FLOAT, "double", 8)
    make.add(Kind.DECL_TAG, "note", enum, 0xFFFFFFFF)
    variable = make.add(Kind.VAR, "v", u64, 1)
    make.add(Kind.DATASEC, ".data", 8, variable, 0, 8, n=1)
    inner = make.struct("", 8, [("ptr", pointer, 0), ("phys", u64, 0)], kind=Kind.UNION)
    anonymous = make.struct("", 8, [("one", u64, 0), ("two", enum, 0)], kind=Kind.UNION)
    members = [
        ("n", u64, 0),
        ("name", name, 64),
        ("flag", boolean, 192),
        ("e", enum, 224),
        ("big", enum64, 256),
        ("cb", callback, 320),
        ("p", volatile, 384),
        ("r", restrict, 448),
        ("other", to_forward, 512),
        ("d", double, 576),
        ("u", inner, 640),
        ("", anonymous, 704),
        ("tail", flexible, 768),
    ]
    id_ = make.struct("everything", 96, members)
    btf = Btf(make.blob())
    assert btf.byteorder == ("little" if order == "<" else "big")
    assert len(btf) == id_
    layout = btf.measure(id_)
    table = [(f.name, f.offset, f.size, f.type, f.kind, f.count) for f in layout.fields]
    assert table == [
        ("n", 0, 8, "u64", "int", None),
        ("name", 8, 16, "char", "char", 16),
        ("flag", 24, 1, "bool", "bool", None),
        ("e", 28, 4, "enum e", "enum", None),
        ("big", 32, 8, "enum e64", "enum", None),
        ("cb", 40, 8, "() *", "pointer", None),
        ("p", 48, 8, "const char *volatile", "pointer", None),
        ("r", 56, 8, "const char *restrict", "pointer", None),
        ("other", 64, 8, "struct other *", "pointer", None),
        ("d", 72, 8, "double", "float", None),
        ("u", 80, 8, "union (anonymous)", "union", None),
        ("one", 88, 8, "u64", "int", None),
        ("two", 88, 4, "enum e", "enum", None),
        ("tail", 96, 0, "u64", "int", 0),
    ]
    assert [f.anonymous for f in layout.fields if f.anonymous] == ["union", "union"]
    union = layout.field("u")
    assert union is not None
    assert [m.name for m in union.members] == ["ptr", "phys"]
    found = layout.field("u.phys")
    assert found is not None
    assert found.offset == 80
    assert layout.field("u.nothing") is None
    assert layout.alignment == 8
    assert not layout.packed
    assert list(layout.padding()) == [(25, 3)]
    assert btf.enumerators() == {"A": 1, "B": -1, "C": 1 << 32}
    assert btf.enumerators({"B", "no"}) == {"B": -1}
    assert btf.layouts(["everything", "nothing"]) == {"everything": (layout,)}
    assert MeasuredStruct.from_json(layout.to_json()) == layout


def test_bit_fields_new_and_old() -> None:
    make = Maker()
    u32 = make.add(Kind.INT, "unsigned int", 4, 32)
    new = make.struct(
        "new", 5, [("ref", u32, 0), ("a", u32, 1 << 24 | 32), ("b", u32, 3 << 24 | 33)], flag=True
    )
    odd = make.add(Kind.INT, "unsigned int", 4, 3)  # 3 bits wide
    shifted = make.add(Kind.INT, "unsigned int", 4, 3 | 5 << 16)  # and from bit 5 on
    old = make.struct("old", 8, [("a", odd, 33), ("b", shifted, 32), ("c", u32, 0)])
    btf = Btf(make.blob())
    layout = btf.measure(new)
    assert [(f.name, f.offset, f.bit_offset, f.bit_size, f.size) for f in layout.fields] == [
        ("ref", 0, 0, 0, 4),
        ("a", 4, 0, 1, 4),
        ("b", 4, 1, 3, 4),
    ]
    assert layout.packed  # five bytes cannot be otherwise
    assert list(layout.padding()) == []
    assert [(f.name, f.offset, f.bit_offset, f.bit_size) for f in btf.measure(old).fields] == [
        ("a", 4, 1, 3),
        ("b", 4, 5, 3),
        ("c", 0, 0, 0),
    ]


def test_split_from_a_base() -> None:
    make = Maker()
    u64 = make.add(Kind.INT, "long unsigned int", 8, 64)
    make.struct("common", 8, [("x", u64, 0)])
    base = Btf(make.blob())
    split = Maker(first=base.end_id, strings=base.string_end)
    # A member name out of the base's strings, a type out of the base.
    x = make.strings.index(b"x\0")
    more = split.add(Kind.STRUCT, "more", 16, x, u64, 0, split.name("y"), 2, 64, n=2)
    module = Btf(split.blob(), base)
    assert module.first_id == 3
    layout = module.measure(more)
    assert [(f.name, f.type, f.offset) for f in layout.fields] == [
        ("x", "unsigned long", 0),
        ("y", "struct common", 8),
    ]
    assert sorted(name for name, _ in module.structs()) == ["common", "more"]
    assert set(module.layouts(["common", "more"])) == {"common", "more"}
    with pytest.raises(BtfError, match="does not start with NUL"):
        Btf(split.blob())
    with pytest.raises(BtfError, match="differ in byte order"):
        Btf(Maker(">").blob(), base)


def test_unknown_kinds_with_and_without_a_layout() -> None:
    make = Maker()
    make.add(25, "new", 0, 7, 8, 9, n=1)
    u8 = make.add(Kind.INT, "unsigned char", 1, 8)
    known = make.struct("s", 1, [("x", u8, 0)])
    with pytest.raises(BtfError, match="kind 25 is not known"):
        Btf(make.blob())
    layout = bytearray(4 * 26)
    layout[4 * 25 : 4 * 25 + 2] = bytes((4, 8))
    btf = Btf(make.blob(bytes(layout)))
    assert btf.measure(known).size == 1
    assert btf.kind(1) == 25


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b[:23], "cut short"),
        (lambda b: b"\0" * len(b), "magic"),
        (lambda b: b[:2] + b"\2" + b[3:], "version 2"),
        (lambda b: b[:4] + struct.pack("<I", 23) + b[8:], "header of 23"),
        (lambda b: b[:4] + struct.pack("<I", 1 << 31) + b[8:], "header of"),
        (lambda b: b[:12] + struct.pack("<I", 1 << 20) + b[16:], "type section"),
        (lambda b: b[:20] + struct.pack("<I", 1 << 20) + b[24:], "string section"),
        (lambda b: b[:20] + struct.pack("<I", 3) + b[24:], "end with NUL"),
        (lambda b: b[:12] + struct.pack("<I", 8) + b[16:], "ends inside a record"),
        (lambda b: b[:12] + struct.pack("<I", 12) + b[16:], "ends inside a record"),
    ],
)
def test_bad_framing(change: object, says: str) -> None:
    make = Maker()
    make.add(Kind.INT, "unsigned int", 4, 32)
    with pytest.raises(BtfError, match=says):
        Btf(change(make.blob()))  # type: ignore[operator]


def test_hostile_references() -> None:
    make = Maker()
    loop = make.add(Kind.TYPEDEF, "loop", 1)
    beyond = make.struct("beyond", 8, [("x", 999, 0)])
    bad_name = make.add(Kind.STRUCT, "bad_name", 8, 1 << 30, 0, 0, n=1)
    self_ = make.struct("self", 8, [("", make.next, 0)])
    named = make.struct("named", 8, [("x", make.next, 0)])
    via_loop = make.struct("via", 8, [("x", loop, 0)])
    pointers = make.add(Kind.PTR, "", make.next)
    to_self = make.struct("p", 8, [("x", pointers, 0)])
    btf = Btf(make.blob())
    for id_, says in (
        (beyond, "id 999 does not exist"),
        (bad_name, "out of bounds"),
        (self_, "nested deeper|contains itself"),
        (named, "contains itself|nested"),
        (via_loop, "chain longer"),
        (to_self, "chain longer"),
        (pointers, "is no struct"),
    ):
        with pytest.raises(BtfError, match=says):
            btf.measure(id_)


def test_explosion_is_bounded() -> None:
    """Each struct holds the one before a thousand times: members to the power of depth."""
    make = Maker()
    u8 = make.add(Kind.INT, "unsigned char", 1, 8)
    below = make.struct("", 1, [("x", u8, 0)] * 1000)
    for _ in range(20):
        below = make.struct("", 1, [("", below, 0)] * 1000)
    top = make.struct("top", 1, [("", below, 0)])
    named = make.struct("named", 1, [("x", below, 0)])
    btf = Btf(make.blob())
    start = time.process_time()
    for id_ in (top, named):
        with pytest.raises(BtfError, match="more than 16384 members"):
            btf.measure(id_)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("arrays", [10, 100])
def test_nested_arrays(arrays: int) -> None:
    make = Maker()
    u64 = make.add(Kind.INT, "long unsigned int", 8, 64)
    element = u64
    for _ in range(arrays):
        element = make.add(Kind.ARRAY, "", 0, element, u64, 3)
    id_ = make.struct("s", 8, [("a", element, 0)])
    if arrays == 10:
        (field,) = Btf(make.blob()).measure(id_).fields
        assert (field.count, field.size, field.type) == (3**10, 8 * 3**10, "unsigned long")
    else:
        with pytest.raises(BtfError, match=r"nested deeper|longer"):
            Btf(make.blob()).measure(id_)


SAMPLE = (DATA / "sample.btf").read_bytes()


def exercise(data: bytes) -> None:
    try:
        btf = Btf(data)
    except BtfError:
        return
    for reader in (btf.enumerators, lambda: btf.layouts(["sample", "nested", "bits"])):
        try:
            reader()
        except BtfError as error:
            assert error.offset >= 0
    for id_ in range(1, min(btf.end_id, 60)):
        try:
            btf.measure(id_)
            btf.size(id_)
        except BtfError:
            pass


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8))
def test_mutations_of_a_real_blob(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    exercise(bytes(data))


def test_many_mutations_quickly() -> None:
    rng = random.Random(1)
    start = time.process_time()
    for _ in range(400):
        data = bytearray(SAMPLE)
        for _ in range(rng.randrange(1, 20)):
            at = rng.randrange(len(data) // 4) * 4
            data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff" * 4, data[:4], rng.randbytes(4)])
        exercise(bytes(data))
    assert time.process_time() - start < 20


def test_recorded_sample() -> None:
    """sample.btf was made by gcc 12 and pahole 1.24 from sample.c beside it."""
    check_sample(Btf(SAMPLE))


def check_sample(btf: Btf) -> None:
    layouts = btf.layouts(["sample", "bits", "nested", "sample_packed"])
    (sample,) = layouts["sample"]
    assert sample.size == 80
    assert [(f.name, f.offset, f.size, f.type, f.count) for f in sample.fields] == [
        ("first", 0, 8, "union (anonymous)", None),
        ("total_pages", 8, 4, "unsigned int", None),
        ("flags", 12, 2, "unsigned short", None),
        ("ok", 14, 1, "bool", None),
        ("name", 15, 16, "char", 16),
        ("matrix", 32, 12, "unsigned short", 6),
        ("mode", 44, 4, "enum mode", None),
        ("value", 48, 8, "u64", None),
        ("half", 48, 4, "unsigned int", None),
        ("nested", 56, 16, "struct nested", None),
        ("back", 72, 8, "struct sample *", None),
        ("tail", 80, 0, "u64", 0),
    ]
    (bits,) = layouts["bits"]
    assert [(f.name, f.offset, f.bit_offset, f.bit_size) for f in bits.fields] == [
        ("ref", 0, 0, 0),
        ("deleted", 4, 0, 1),
        ("incoming", 4, 1, 1),
        ("vasz", 4, 2, 11),
        ("rest", 8, 0, 52),
    ]
    (packed,) = layouts["sample_packed"]
    assert (packed.size, packed.packed, packed.alignment) == (13, True, 1)
    assert btf.enumerators({"MODE_ONE", "MODE_MINUS"}) == {"MODE_ONE": 1, "MODE_MINUS": -1}


@pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("pahole")), reason="needs gcc and pahole"
)
def test_sample_made_here(tmp_path: Path) -> None:
    """The same source through this machine's tools; drgn, where installed, must agree."""
    obj = tmp_path / "sample.o"
    subprocess.run(["gcc", "-g", "-c", str(DATA / "sample.c"), "-o", str(obj)], check=True)
    blob = tmp_path / "sample.btf"
    command = ["pahole", "-J", f"--btf_encode_detached={blob}", str(obj)]
    subprocess.run(command, check=True)
    btf = Btf(blob.read_bytes())
    check_sample(btf)
    pytest.importorskip("drgn")
    from inspector.layouts.dwarf import Dwarf

    names = ["sample", "bits", "nested", "sample_packed"]
    dwarf = Dwarf(obj)
    assert dwarf.layouts([*names, "nothing"]) == btf.layouts(names)
    constants = ["MODE_ONE", "MODE_MINUS", "NOTHING"]
    assert dwarf.enumerators(constants) == {"MODE_ONE": 1, "MODE_MINUS": -1}
    assert dwarf.byteorder == "little"


OWN_KERNEL = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.skipif(not OWN_KERNEL.exists(), reason="this kernel has no BTF")
def test_this_machines_kernel() -> None:
    btf = Btf(OWN_KERNEL.read_bytes())
    (node,) = btf.layouts(["list_head"])["list_head"]
    assert node.size == 2 * btf.pointer_size
    assert [f.type for f in node.fields] == ["struct list_head *"] * 2


def test_limits_are_what_the_tests_assume() -> None:
    assert btf_module.MAX_FIELDS == 16384
    assert MeasuredField("x", 0, 0, "u8", "int", count=0).flexible


# -- much work for few bytes ----------------------------------------------------------------------


def test_one_layout_of_many_structs_is_measured_and_sixteen_are_kept() -> None:
    maker = Maker()
    number = maker.add(Kind.INT, "int", 4, 32)
    for i in range(500):
        maker.struct("memfd_luo_ser", 4 + i % 3, [("a", number, 0)])
    btf = Btf(maker.blob())
    assert [s.size for s in btf.layouts(["memfd_luo_ser"])["memfd_luo_ser"]] == [4, 5, 6]
    for i in range(500):
        maker.struct("memfd_luo_ser", 8 + i, [("a", number, 0)])
    btf = Btf(maker.blob())
    before = btf._steps
    assert len(btf.layouts(["memfd_luo_ser"])["memfd_luo_ser"]) == btf_module.MAX_LAYOUTS == 16
    # The 484 structs behind the sixteenth layout are not looked into.
    assert before - btf._steps < 513 * 30


def test_members_in_an_anonymous_struct_count_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf_module, "MAX_STEPS", 10_000)
    maker = Maker()
    number = maker.add(Kind.INT, "int", 4, 32)
    inner = maker.struct("", 400, [("a", number, 32 * i) for i in range(100)])
    for i in range(40):
        maker.struct("memfd_luo_ser", 400 + i, [("", inner, 0)])
    btf = Btf(maker.blob())
    with pytest.raises(BtfError, match="more than 10000 records"):
        btf.layouts(["memfd_luo_ser"])


def test_more_types_than_a_kernel_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf_module, "MAX_TYPES", 10)
    maker = Maker()
    for _ in range(11):
        maker.add(Kind.INT, "int", 4, 32)
    with pytest.raises(BtfError, match="more than 10 types"):
        Btf(maker.blob())


def test_the_sample_is_far_from_the_limit() -> None:
    btf = Btf((DATA / "sample.btf").read_bytes())
    btf.layouts({name for name, _ in btf.structs()})
    assert btf_module.MAX_STEPS - btf._steps < 20_000
