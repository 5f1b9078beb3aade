"""The declaration vocabulary: its engines agree, for every declared struct and page size."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import construct as cs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import luo, memfd, registry, schema
from abi.errors import CodecError
from abi.schema import (
    PAGE_SIZES,
    Struct,
    array,
    bits,
    boolean,
    chars,
    enum,
    flags,
    kernel_pointer,
    per_page,
    phys,
    resolve,
    s32,
    u8,
    u16,
    u32,
    u64,
    union,
)


def every_struct() -> list[Any]:
    """Each declared struct once, with its size for each page size."""
    seen: dict[int, Any] = {}
    for generation in registry.every():
        for name, layout in generation.layouts.items():
            for page_size in PAGE_SIZES:
                struct = resolve(layout, page_size)
                label = f"{generation.id}-{name}" + (
                    "" if struct is layout else f"-{page_size >> 10}K"
                )
                seen.setdefault(id(struct), pytest.param(struct, id=label))
    return list(seen.values())


ALL = every_struct()
SMALL = [p for p in ALL if p.values[0].size <= 512]


def noise(struct: Struct, seed: int) -> bytes:
    """Random bytes of the struct's size; seed 0 and 1 are all zeros and all ones."""
    if seed < 2:
        return bytes([255 * seed]) * struct.size
    return random.Random(seed).randbytes(struct.size)


seeds = st.integers(0, 1 << 32)


def plain(value: Any) -> Any:
    """Containers, lists and arrays of any engine as dicts, tuples, bytes and ints."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k != "_io"}
    if isinstance(value, (list, tuple)):
        return tuple(plain(v) for v in value)
    return value


# -- every declared struct --------------------------------------------------------------------


@pytest.mark.parametrize("struct", ALL)
def test_parse_and_build_are_inverse(struct: Struct) -> None:
    for seed in (0, 1, 2, 3):
        data = noise(struct, seed)
        parsed = struct.parse(data)
        assert struct.build(parsed) == data
        assert struct.construct.build(struct.construct.parse(data)) == data


@pytest.mark.parametrize("struct", SMALL)
@settings(max_examples=8)
@given(seed=seeds)
def test_engines_agree(struct: Struct, seed: int) -> None:
    """construct, unpack, numpy records and columns say the same."""
    data = noise(struct, seed)
    parsed = struct.parse(data)
    assert struct.build(parsed) == data
    assert struct.build(plain(parsed)) == data
    flat = struct.unpack(data)
    record = np.frombuffer(data, struct.dtype)
    columns = struct.columns(record)
    check(struct, parsed, record[0])
    for name, value in flat.items():
        if name not in columns:
            continue  # raw areas
        column = columns[name][0]
        if isinstance(value, bytes):
            assert column.tobytes() == value, name
        elif isinstance(value, tuple):
            assert tuple(column.tolist()) == value, name
        else:
            assert int(column) == value, name


def check(struct: Struct, parsed: Mapping[str, Any], record: Any) -> None:
    """Each field of a parsed object equals the numpy record's."""
    for field in struct.fields:
        if field.flexible:
            continue
        if field.bit_size:
            raw = int(record[field.union])
            low = 8 * (field.offset - struct_offset(struct, field.union)) + field.bit_offset
            assert parsed[field.name] == raw >> low & (1 << field.bit_size) - 1
        elif field.struct is not None and field.count is None:
            check(field.struct, parsed[field.name], record[field.name])
        elif field.struct is not None:
            assert field.count is not None
            for i in range(field.count):
                check(field.struct, parsed[field.name][i], record[field.name][i])
        elif field.ctype == "char" or field.padding:
            assert parsed[field.name] == record[field.name].tobytes()
        elif field.count is not None:
            assert list(parsed[field.name]) == record[field.name].tolist()
        else:
            assert parsed[field.name] == int(record[field.name])


def struct_offset(struct: Struct, area: str) -> int:
    """Where the raw integer of a group of bit-fields begins."""
    fields = struct.dtype.fields
    assert fields is not None
    return int(fields[area][1])


@pytest.mark.parametrize("struct", ALL)
def test_unpack_at_an_offset(struct: Struct) -> None:
    data = noise(struct, 7)
    assert struct.unpack(b"xyz" + data + b"!", 3) == struct.unpack(data)
    assert struct.unpack(memoryview(data)) == struct.unpack(bytearray(data))


@pytest.mark.parametrize("struct", ALL)
def test_names_of_the_flat_form_are_unique(struct: Struct) -> None:
    names = [leaf.name for leaf in struct._leaves] + [bit.name for bit in struct._bits]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("struct", ALL)
def test_short_buffer(struct: Struct) -> None:
    with pytest.raises(CodecError, match=rf"struct {struct.cname} needs {struct.size} bytes") as e:
        struct.unpack(bytes(struct.size - 1 + 5), 5)
    assert e.value.offset == 5
    with pytest.raises(cs.ConstructError):
        struct.parse(bytes(struct.size - 1))


@pytest.mark.parametrize("struct", ALL)
def test_built_from_nothing_is_zero(struct: Struct) -> None:
    assert struct.build({}) == bytes(struct.size)
    assert struct.sizeof() == struct.size == struct.dtype.itemsize


@pytest.mark.parametrize("struct", SMALL[::4])
def test_compiles(struct: Struct) -> None:
    """construct's own compiler takes the plain declaration, and it parses the same."""
    compiled = struct.construct.compile()
    data = noise(struct, 11)
    assert plain(compiled.parse(data)) == plain(struct.construct.parse(data))
    assert compiled.build(struct.construct.parse(data)) == data


@pytest.mark.parametrize("struct", ALL)
def test_fields_tile_the_struct(struct: Struct) -> None:
    """Fields ascend, leave no gap and end at the size; views lie inside their area."""
    at = 0
    for field in struct.fields:
        assert struct.field(field.name) == field
        if field.flexible:
            assert field.offset == struct.size
        elif field.union and field.struct is not None:
            assert field.offset + field.struct.size <= struct.size
        elif field.bit_size:
            assert field.offset < struct.size
        else:
            assert field.offset >= at
            at = field.offset + field.size
    covered = np.zeros(struct.size, np.bool_)
    for leaf in struct._leaves:
        size = (leaf.count or 1) * (1 if isinstance(leaf.type, schema.Chars) else leaf.type.size)
        assert not covered[leaf.offset : leaf.offset + size].any()
        covered[leaf.offset : leaf.offset + size] = True
    assert covered.all()
    if not struct.packed:
        assert struct.size % struct.alignment == 0


@pytest.mark.parametrize("struct", ALL)
def test_c_text_names_every_field(struct: Struct) -> None:
    text = struct.c()
    assert text.startswith(f"struct {struct.cname} {{\n")
    for field in struct.fields:
        assert (f" {field.name}" in text) or (f"*{field.name}" in text) or field.padding
    assert f"/* {struct.size} bytes */" in text


@settings(max_examples=30)
@given(data=st.data())
def test_changing_one_member_changes_only_its_bytes(data: st.DataObject) -> None:
    struct = data.draw(st.sampled_from([p.values[0] for p in SMALL]))
    old = noise(struct, data.draw(seeds))
    fields = [
        f for f in struct.fields
        if f.struct is None and f.count is None and not f.flexible and f.ctype != "s32"
    ]  # fmt: skip
    if not fields:
        return
    field = data.draw(st.sampled_from(fields))
    width = field.bit_size or 8 * field.size
    value = data.draw(st.integers(0, (1 << width) - 1))
    new = struct.build({**struct.parse(old), field.name: value})
    assert struct.parse(new)[field.name] == value
    shift = 8 * field.offset + field.bit_offset
    mask = ((1 << width) - 1) << shift
    before, after = (int.from_bytes(x, "little") for x in (old, new))
    assert before & ~mask == after & ~mask
    assert after >> shift & (1 << width) - 1 == value


# -- the vocabulary ---------------------------------------------------------------------------

inner = Struct("inner", "flags" / u16, "word" / bits(u32, low=3, high=29), packed=False)
outer = Struct(
    "outer",
    "kind" / enum(u8, NONE=0, SOME=1) * "what it is",
    "inner" / inner,
    "alternatives"
    / union(
        small=Struct("small", "a" / u16, packed=False),
        large=Struct("large", "b" / u64, packed=False),
    ),
    "flags" / flags(u32, FIRST=1, SECOND=2) * "state",
    "ok" / boolean,
    "name" / chars(5),
    "pointer" / phys("struct outer"),
    "back" / kernel_pointer("struct device"),
    "items" / array(inner, 2),
    packed=False,
    doc="An example.",
    tail=("rest", u32),
)


def test_unpacked_layout_is_the_compilers() -> None:
    assert {f.name: (f.offset, f.size) for f in outer.fields if not f.padding} == {
        "kind": (0, 1),
        "inner": (4, 8),
        "small": (16, 2),
        "large": (16, 8),
        "flags": (24, 4),
        "ok": (28, 1),
        "name": (29, 5),
        "pointer": (40, 8),
        "back": (48, 8),
        "items": (56, 16),
        "rest": (72, 0),
    }
    assert outer.size == 72
    assert outer.alignment == 8
    assert [f.name for f in outer.fields if f.padding] == ["_pad1", "_pad12", "_pad34"]


def test_packed_bits_take_only_the_bytes_they_need() -> None:
    packed = Struct("packed", "byte" / u8, "word" / bits(u64, a=1, b=2), "after" / u16)
    assert packed.size == 4
    assert packed.alignment == 1
    assert packed.field("b").bit_offset == 1
    assert packed.field("b").size == 8  # of the declared type
    unpacked = Struct("loose", "byte" / u8, "word" / bits(u32, a=1, b=2), packed=False)
    assert unpacked.size == 8


def test_names_shared_by_nested_and_outer_members() -> None:
    values = outer.unpack(outer.build({"flags": 7, "inner": {"flags": 9, "high": 5}}))
    assert values["flags"] == 7
    assert values["inner.flags"] == 9
    assert values["high"] == 5
    assert outer.nested(values, "inner") == {
        "flags": 9, "_pad2": b"\0\0", "word": 40, "low": 0, "high": 5,
    }  # fmt: skip
    later = Struct("later", "inner" / inner, "flags" / u64)
    values = later.unpack(later.build({"flags": 7, "inner": {"flags": 9}}))
    assert (values["flags"], values["inner.flags"]) == (7, 9)
    record = np.frombuffer(later.build({"flags": 7, "inner": {"flags": 9}}), later.dtype)
    columns = later.columns(record)
    assert (columns["flags"].tolist(), columns["inner.flags"].tolist()) == ([7], [9])


def test_values_that_no_kernel_writes_survive() -> None:
    data = outer.build({"ok": 2, "kind": 77, "flags": 0xFFFF_FFFF, "_pad12": b"\1\2\3\4"})
    again = outer.parse(data)
    assert (again.ok, again.kind, again.flags) == (2, 77, 0xFFFF_FFFF)
    assert again["_pad12"] == b"\1\2\3\4"
    assert outer.build(again) == data


def test_views_are_laid_over_the_raw_area() -> None:
    raw = bytes(range(1, 9))
    data = outer.build({"alternatives": raw, "small": {"a": 0xBBAA}})
    assert outer.parse(data).alternatives == b"\xaa\xbb" + raw[2:]
    assert outer.parse(data).large.b == int.from_bytes(b"\xaa\xbb" + raw[2:], "little")
    values = outer.unpack(data, 0, "small")
    assert values["small.a"] == 0xBBAA
    assert "large.b" not in values
    record = np.frombuffer(data, outer.dtype)
    assert outer.columns(record, "small")["small.a"].tolist() == [0xBBAA]


def test_bits_are_laid_over_the_raw_word() -> None:
    assert inner.parse(inner.build({"word": 0xFFFF_FFFF, "low": 2})).word == 0xFFFF_FFFA
    with pytest.raises(CodecError, match="low has 3 bits"):
        inner.build({"low": 8})
    with pytest.raises(CodecError, match="low has 3 bits"):
        inner.build({"low": -1})


def test_views_of_array_items() -> None:
    data = outer.build({"items": [{"low": 5}, {"high": 1}]})
    items = outer.parse(data)["items"]
    assert [(i.low, i.high) for i in items] == [(5, 0), (0, 1)]
    items[1].high = 3
    assert outer.parse(outer.build({"items": items}))["items"][1].high == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"nothing": 1}, "struct outer has no field 'nothing'"),
        ({"rest": [1]}, "struct outer has no field 'rest'"),
        ({"inner": {"flag": 1}}, "struct inner has no field 'flag'"),
    ],
)
def test_unknown_members(value: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        outer.build(value)


def test_wrong_values() -> None:
    with pytest.raises(cs.ConstructError):
        outer.build({"kind": 256})
    with pytest.raises(cs.ConstructError):
        outer.build({"items": [{}]})
    with pytest.raises(TypeError, match="built from a mapping"):
        outer.build(5)


def test_wrong_declarations() -> None:
    with pytest.raises(TypeError, match="not in the vocabulary"):
        Struct("bad", "x" / cs.Int32ul)
    with pytest.raises(TypeError, match="no elements behind it"):
        inner.capacity(0x1000)
    with pytest.raises(ValueError, match="no machine with KHO has pages of 8192 bytes"):
        per_page(lambda page_size: inner)(0x2000)


def test_fields_by_name() -> None:
    assert outer.field("inner.high").offset == 4 + 4
    assert outer.field("inner.high").bit_offset == 3
    assert outer.field("large.b").offset == 16
    for missing in ("nothing", "inner.nothing", "flags.x"):
        with pytest.raises(KeyError):
            outer.field(missing)
    flat = {f.name: f.offset for f in outer.flat_fields()}
    assert flat["inner.flags"] == 4
    assert flat["small.a"] == 16
    assert outer.field("flags").names == {"FIRST": 1, "SECOND": 2}
    assert outer.field("pointer").points_to == "struct outer"
    assert outer.capacity(0x1000) == (0x1000 - 72) // 4


def test_signed() -> None:
    signed = Struct("signed", "fd" / s32)
    assert signed.unpack(b"\xff\xff\xff\xff") == {"fd": -1}
    assert np.frombuffer(b"\xff\xff\xff\xff", signed.dtype)["fd"].tolist() == [-1]


def test_each_page_size_is_declared_once() -> None:
    layout = registry.get("vmalloc", "vmalloc-v1").layouts["kho_vmalloc_chunk"]
    assert resolve(layout, 0x4000) is resolve(layout, 0x4000)
    assert [resolve(layout, p).size for p in PAGE_SIZES] == list(PAGE_SIZES)


def test_repr() -> None:
    assert repr(inner) == "<struct inner, 8 bytes>"


# -- C text -----------------------------------------------------------------------------------

GOLDEN = {
    luo.luo_ser: """\
struct luo_ser {
	char compatible[8]; /* 0x0; padded to a multiple of 8 bytes */
	u64 liveupdate_num; /* 0x8; live updates since the last cold boot, this one included */
	u64 sessions_pa;    /* 0x10; -> struct kho_block_header_ser (entries: struct \
luo_session_ser); 0: no session */
	u64 flbs_pa;        /* 0x18; -> struct luo_flb_header_ser; 0: no FLB */
} __packed;  /* 32 bytes */""",
    memfd.memfd_luo_folio_ser: """\
struct memfd_luo_folio_ser {
	u64 pfn : 52;   /* 0x0.0; pfn 0 is a hole; flags: 1 dirty, 2 up to date */
	u64 flags : 12; /* 0x6.4; pfn 0 is a hole; flags: 1 dirty, 2 up to date */
	u64 index;      /* 0x8; in the file, in base pages */
} __packed;  /* 16 bytes */""",
    inner: """\
struct inner {
	u16 flags;     /* 0x0 */
	u32 low : 3;   /* 0x4.0 */
	u32 high : 29; /* 0x4.3 */
};  /* 8 bytes */""",
    outer: """\
struct outer {
	u8 kind;                    /* 0x0; 0 NONE, 1 SOME; what it is */
	struct inner inner;         /* 0x4 */
	union {
		struct small small; /* 0x10 */
		struct large large; /* 0x10 */
	};
	u32 flags;                  /* 0x18; FIRST=0x1, SECOND=0x2; state */
	bool ok;                    /* 0x1c */
	char name[5];               /* 0x1d */
	u64 pointer;                /* 0x28; -> struct outer */
	struct device *back;        /* 0x30 */
	struct inner items[2];      /* 0x38 */
	u32 rest[];                 /* 0x48 */
};  /* 72 bytes */""",
}


@pytest.mark.parametrize("struct", GOLDEN, ids=lambda s: str(s.cname))
def test_c_text(struct: Struct) -> None:
    assert struct.c() == GOLDEN[struct]


def definition(struct: Struct, known: dict[str, str]) -> None:
    """Collect the C text of a struct and, before it, of all it contains."""
    for field in struct.fields:
        if field.struct is not None:
            definition(field.struct, known)
    known.setdefault(struct.cname, struct.c())


def assertions(struct: Struct, number: int) -> str:
    """A C function that holds only if the compiler lays the struct out as declared."""
    known: dict[str, str] = {}
    definition(struct, known)
    name = f"struct {struct.cname}"
    checks = [f"_Static_assert(sizeof({name}) == {struct.size});"]
    checks.append(f"_Static_assert(_Alignof({name}) == {struct.alignment});")
    checks += [
        f"_Static_assert(offsetof({name}, {f.name}) == {f.offset});"
        for f in struct.fields
        if not f.bit_size and not f.padding
    ]
    body = "\n".join([*known.values(), *checks])
    return f"void check_{number}(void)\n{{\n{body}\n}}\n"


PRELUDE = """\
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#define __packed __attribute__((packed))
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t s32;
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_text_is_what_the_compiler_makes_of_it(tmp_path: Path) -> None:
    """The printed C of every declared struct compiles to the declared sizes and offsets."""
    source = tmp_path / "structs.c"
    structs = [p.values[0] for p in ALL] + [inner, outer]
    kinds = {f.ctype for s in structs for f in s.fields if f.ctype.startswith("enum ")}
    enums = "".join(f"{kind} {{ {kind.split()[1]}_value }};\n" for kind in sorted(kinds))
    checks = "".join(assertions(s, i) for i, s in enumerate(structs))
    source.write_text(PRELUDE + enums + checks)
    command = ["cc", "-std=gnu2x", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    source.write_text(source.read_text().replace("== 48);", "== 49);", 1))
    assert subprocess.run(command, capture_output=True, check=False).returncode


def test_a_real_union_of_the_abi() -> None:
    """The IOMMU's hardware object holds alternatives: raw bytes, and views by name."""
    layout = registry.get("iommu", "iommu-v4-version-field").layouts["iommu_hw_ser"]
    struct = resolve(layout, 0x1000)
    view = next(f for f in struct.fields if f.union and f.struct is not None)
    data = noise(struct, 5)
    values = struct.unpack(data, 0, view.name)
    assert view.struct is not None
    first = view.struct.fields[0]
    at = view.offset + first.offset
    expected = int.from_bytes(data[at : at + first.size], "little")
    assert values[f"{view.name}.{first.name}"] == expected
    assert struct.build(struct.parse(data)) == data
