"""The codec's two engines and the Kaitai parsers agree on every struct.

``abi`` declares each struct once, for construct and for numpy; ``specs`` describes it again,
independently. Here the three read the same bytes: patterns and arbitrary bytes for every
struct of every generation, and all that the captures hold.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import construct
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaitai_patterns import CASES, fix, params_for, pattern, struct_size
from kaitai_support import PAGE_SIZES, Type, all_types, c_structs, core
from test_kaitai_images import IOMMU_IMAGES, LAYOUTS, MEMORY_IMAGES, root_address, truth
from test_kaitai_targets import names

from abi import registry
from abi.block import kho_block_header_ser
from abi.errors import CodecError
from abi.fdt import parse as parse_fdt
from abi.schema import Struct, resolve
from specs import PARSE_ERRORS, Fdt, parse
from specs.follow import Follower
from specs.reader import ImageReader


@cache
def declared(generation: str, name: str, page_size: int) -> Struct | None:
    """The codec's declaration of a struct of the census."""
    if name == "kho_block_header_ser":
        return kho_block_header_ser
    for entry in registry.every():
        if generation in entry.census and name in entry.layouts:
            return resolve(entry.layouts[name], page_size)
    return None


def plain(value: Any) -> Any:
    """A value of any engine as bytes, a number or a list of numbers."""
    if hasattr(value, "raw"):
        return value.raw
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype == np.uint8 else [int(v) for v in value]
    if isinstance(value, list | tuple):
        return [int(v) for v in value]
    if isinstance(value, bytes):
        return value
    return int(value)


def same(first: Any, second: Any) -> bool:
    """Equal; byte arrays also as lists or as little-endian numbers, strings without their NULs."""
    a, b = plain(first), plain(second)
    if isinstance(a, bytes) and isinstance(b, list):
        width = len(a) // len(b) if b else 1
        a = [int.from_bytes(a[i : i + width], "little") for i in range(0, len(a), width)]
    if isinstance(a, bytes) and isinstance(b, int):
        a = int.from_bytes(a, "little")
    if isinstance(a, int) and isinstance(b, bytes):
        b = int.from_bytes(b, "little")
    if isinstance(a, bytes) and isinstance(b, bytes) and len(a) != len(b):
        return a.rstrip(b"\0") == b.rstrip(b"\0")
    return bool(a == b)


def compare(codec: Struct, parsed: Any, record: Any, kaitai: Any, aliases: dict[str, str]) -> int:
    """Compare all members in the three engines; returns how many."""
    compared = 0
    for field in codec.fields:
        if field.padding or field.flexible or field.count == 0:
            continue
        name = f"{codec.cname}.{field.name}"
        mine = getattr(kaitai, aliases.get(field.name, field.name))
        theirs = None if parsed is None else parsed[field.name]
        if field.bit_size:
            raw = int(record[field.union])
            bit = next(b for b in codec._bits if b.name == field.name)
            column: Any = raw >> bit.shift & ((1 << bit.width) - 1)
        else:
            column = record[field.name]
        if field.struct is not None and field.count is None:
            inner = all_types()[names()[type(mine)]].aliases
            compared += compare(field.struct, theirs, column, mine, inner)
        elif field.struct is not None:
            assert len(mine) == len(column), name
            rows = [None] * len(mine) if theirs is None else theirs
            for one, two, three in zip(rows, column, mine, strict=True):
                inner = all_types()[names()[type(three)]].aliases
                compared += compare(field.struct, one, two, three, inner)
        else:
            assert theirs is None or same(mine, theirs), name
            assert same(mine, column), name
            compared += 1
    return compared


def check(
    codec: Struct, data: bytes, kaitai: Any, aliases: dict[str, str], *, numpy_only: bool = False
) -> int:
    """Parse ``data`` with both engines of the codec and compare with a Kaitai object."""
    data = data[: codec.size]
    parsed = None if numpy_only else codec.parse(data)
    record = np.frombuffer(data, codec.dtype)[0]
    assert parsed is None or codec.build(parsed) == data
    return compare(codec, parsed, record, kaitai, aliases)


def cases() -> list[Any]:
    return [
        pytest.param(generation, name, entry, label, id=f"{generation}-{name}-{label}")
        for generation, name, entry in CASES
        for label in c_structs()[generation, name].get("size_by_page_size", ["4K"])
        # Nodes, bitmaps and chunks are one array: compared below, as whole pages.
        if struct_size(c_structs()[generation, name], label) <= 16384
    ]


@pytest.mark.parametrize(("generation", "name", "entry", "label"), cases())
def test_patterns(generation: str, name: str, entry: Type, label: str) -> None:
    layout = c_structs()[generation, name]
    codec = declared(generation, name, PAGE_SIZES[label])
    assert codec is not None, "the codec does not declare it"
    assert codec.size == struct_size(layout, label)
    data = pattern(generation, name, entry, label, 7)
    kaitai = parse(entry.parser, data, *params_for(entry, layout, label))
    assert check(codec, data, kaitai, entry.aliases) > 0


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_arbitrary_bytes(draw: st.DataObject) -> None:
    """Bytes of any content and length: the same values, or refused by all three."""
    generation, name, entry = draw.draw(st.sampled_from(CASES))
    layout = c_structs()[generation, name]
    if layout["size"] > 512:
        return
    codec = declared(generation, name, 4096)
    assert codec is not None
    size = codec.size + (7 if name == "pci_saved_state_ser" else 0)
    noise = bytearray(draw.draw(st.binary(min_size=size, max_size=size)))
    fix(noise, generation, layout, 0, "4K")
    if name == "pci_saved_state_ser":
        noise[-7:] = bytes(7)
    params = params_for(entry, layout, "4K")
    kaitai = parse(entry.parser, bytes(noise), *params)
    assert check(codec, bytes(noise), kaitai, entry.aliases) > 0
    short = bytes(noise[: draw.draw(st.integers(0, codec.size - 1))])
    with pytest.raises(PARSE_ERRORS):
        parse(entry.parser, short, *params)
    with pytest.raises((CodecError, construct.ConstructError)):
        codec.parse(short)
    with pytest.raises(CodecError):
        codec.unpack(short)
    with pytest.raises((ValueError, IndexError)):
        np.frombuffer(short, codec.dtype)[0]


# Captures


def resolve_type(holder: Type, name: str) -> Type | None:
    """The type that a member's ``type`` names, seen from ``holder``."""
    name = name.split("(")[0]
    for depth in range(len(holder.path), -1, -1):
        found = all_types().get("::".join((holder.module, *holder.path[:depth], name)))
        if found is not None:
            return found
    return all_types().get(name)


WIDTHS = {"u1": 1, "u2": 2, "u4": 4, "u8": 8, "s4": 4}


def pieces(entry: Type, obj: Any, at: int = 0) -> Iterator[tuple[Type, Any, int]]:
    """C structs inside a parsed page as (type, object, offset), as far as sizes are known."""
    if entry.c_structs:
        yield entry, obj, at
        layout = c_structs()[entry.c_structs[0]]
        for field in layout["fields"]:
            kind = {a["id"]: a.get("type") for a in entry.spec["seq"]}.get(field["name"])
            inner = resolve_type(entry, kind) if isinstance(kind, str) else None
            if field["size"] == 0 and inner is not None and inner.c_structs:
                size = c_structs()[inner.c_structs[0]]["size"]
                for i, item in enumerate(getattr(obj, field["name"])):
                    yield inner, item, at + layout["size"] + i * size
        return
    for attribute in entry.spec.get("seq", []):
        kind, size = attribute.get("type"), attribute.get("size")
        if size == 0:
            continue
        inner = resolve_type(entry, kind) if isinstance(kind, str) else None
        if inner is None or not (inner.c_structs or inner.spec.get("-orig-id")):
            if kind not in WIDTHS:
                return
            at += WIDTHS[kind]
            continue
        value = getattr(obj, attribute["id"])
        for item in value if isinstance(value, list) else [value]:
            yield inner, item, at
            at += c_structs()[inner.c_structs[0]]["size"]


class Comparer(Follower):
    """Checks every struct that it parses against the codec."""

    compared: Counter[str]
    generations: tuple[str, ...]

    def parse(self, where: str, pa: int, data: bytes, parser: Any, *params: Any) -> Any:
        obj = super().parse(where, pa, data, parser, *params)
        if obj is None:
            return None
        entry = all_types()[names()[parser]]
        for inner, item, at in pieces(entry, obj):
            known = [declared(g, n, self.page_size) for g, n in inner.c_structs]
            codecs = [c for c in known if c is not None]
            assert codecs, inner.name
            # A bitmap is 512 bytes or a page; its length tells which is meant.
            codec = next((c for c in codecs if c.size == len(data)), codecs[0])
            piece = data[at : at + codec.size]
            if inner.name == "kho_bitmaps::chunk":
                # The parser reads the entries that are in use, the codec all slots.
                used = 16 + 16 * item.hdr.num_elms
                slots = np.frombuffer(piece[16:used], "<u8").reshape(-1, 2).tolist()
                assert [[b.phys_start, b.bitmap] for b in item.bitmaps] == slots
                parsed = codec.parse(piece)
                assert parsed["hdr"]["num_elms"] == item.hdr.num_elms
                assert parsed["hdr"]["order"] == item.hdr.order
                assert parsed["hdr"]["next"] == item.hdr.next
                self.compared[inner.name] += 1
                continue
            # construct is slow on pages of addresses: a few of them, and all with numpy.
            many = codec.size >= 4096 and self.compared[inner.name] >= 8
            count = check(codec, piece, item, inner.aliases, numpy_only=many)
            self.compared[inner.name] += count > 0
        return obj


@pytest.mark.parametrize("name", MEMORY_IMAGES + IOMMU_IMAGES)
def test_captures(name: str) -> None:
    page_size = truth(name).get("page_size", 4096)
    reader = ImageReader(core(name), page_size, LAYOUTS.get(name))
    comparer = Comparer(core(name), page_size)
    comparer.compared = Counter()
    reader.follower = comparer
    image = reader.image(root_address(name))
    if image.luo is None and "luo" in truth(name):
        found = truth(name)["luo"]
        list(reader.session_list(int(found["sessions_pa"], 0)))
        list(reader.flbs(int(found["flbs_pa"], 0)))
    if "incoming" not in name:
        assert len(list(reader.blocks(image))) > 30
    seen = comparer.compared
    if "6.1" not in name:
        assert seen["kexec_metadata"] == 1
    if "incoming" not in name and "6.17" not in name and "6.18" not in name:
        assert seen["luo::session"] >= 3
        assert seen["luo::file"] >= 11
        assert seen["folio_entry"] >= 1
    if name.startswith("iommu"):
        found = truth(name)["iommu_flb"]
        for kind in ("hw", "domain", "device"):
            objects = sum(n for t, n in seen.items() if t.startswith(f"iommu_luo::{kind}_v"))
            assert objects == len(found[kind if kind == "hw" else f"{kind}s"])
        assert seen["iommufd_luo::hwpt"] >= 3


@pytest.mark.parametrize("name", MEMORY_IMAGES + IOMMU_IMAGES)
def test_device_trees(name: str) -> None:
    """The root tree and the trees of the blobs, with the codec's parser and with this one."""

    def flat(node: Any, path: str = "") -> dict[str, dict[bytes, bytes]]:
        here = f"{path}/{node.name if isinstance(node.name, str) else node.name.decode()}"
        found = {here: {as_bytes(k): bytes(v) for k, v in properties(node)}}
        for child in node.children:
            found |= flat(child, here)
        return found

    def as_bytes(key: Any) -> bytes:
        return key.encode() if isinstance(key, str) else bytes(key)

    def properties(node: Any) -> Any:
        held = node.properties
        return held.items() if hasattr(held, "items") else [(p.name, p.value) for p in held]

    memory = core(name)
    follower = Follower(memory, truth(name).get("page_size", 4096))
    image = ImageReader(memory, follower.page_size, LAYOUTS.get(name)).image(root_address(name))
    compared = 0
    for pa in [root_address(name), *(pa for pa, _ in image.blobs.values())]:
        if memory.read(pa, 4) != b"\xd0\x0d\xfe\xed":
            continue
        size = struct.unpack(">I", memory.read(pa + 4, 4))[0]
        mine = follower.tree(pa)
        assert mine is not None
        assert flat(mine) == flat(parse_fdt(memory.read(pa, size)).root)
        compared += 1
    assert compared >= 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tree_headers(data: st.DataObject) -> None:
    """A wrong magic or a short buffer is refused by both parsers of device trees."""
    raw = core("linux-7.3.4-handoff").read(root_address("linux-7.3.4-handoff"), 4096)
    size = struct.unpack_from(">I", raw, 4)[0]
    if data.draw(st.booleans()):
        wrong = bytearray(raw[:size])
        wrong[data.draw(st.integers(0, 3))] ^= data.draw(st.integers(1, 255))
        damaged = bytes(wrong)
    else:
        damaged = raw[: data.draw(st.integers(0, 39))]
    with pytest.raises(PARSE_ERRORS):
        parse(Fdt, damaged)
    with pytest.raises(CodecError):
        parse_fdt(damaged)


def test_strings_known_to_both() -> None:
    """The strings that a specification accepts are those that the codec has generations for."""
    for spec, path, layer in (
        ("kho_fdt_props", "kho_compatible", "kho"),
        ("luo", "ser", "luo"),
    ):
        entry = all_types()[f"{spec}::{path}"]
        (checked,) = [a for a in entry.spec["seq"] if "valid" in a]
        accepted = {s.strip('"') for s in checked["valid"]["any-of"]}
        known = {s for g in registry.generations(layer) for s in g.strings}
        assert accepted <= known
        if layer == "kho":
            assert accepted == known
