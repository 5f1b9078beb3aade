"""What the parsers refuse: magics, strings and counts; and that noise never does worse."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaitai_support import ROOT

import specs
from abi import qemu_cpr
from specs import (
    PARSE_ERRORS,
    CString,
    Fdt,
    IommufdLuo,
    IommuLuo,
    IommuLuoRfc,
    KexecMetadata,
    KhoBitmaps,
    KhoBlock,
    KhoFdtProps,
    KhoSelftest,
    Luo,
    PciLuo,
    QemuCpr,
    VfioPciLuo,
    parse,
    torture,
)


def u64(*values: int) -> bytes:
    return b"".join(v.to_bytes(8, "little") for v in values)


PAGE = bytes(4096)
STREAMS = sorted((ROOT / "tests/data/qemu_cpr").glob("*.bin"))


@pytest.mark.parametrize(
    ("parser", "data", "params"),
    [
        pytest.param(Fdt, b"\xd0\x0d\xfe\xec" + bytes(60), (), id="fdt-magic"),
        pytest.param(Fdt, struct.pack(">2I", 0xD00DFEED, 39) + bytes(60), (), id="fdt-size"),
        pytest.param(KexecMetadata, b"\2" + bytes(72), (), id="metadata-version"),
        pytest.param(KhoSelftest, b"\x22\x0f\x4b\x48", (), id="kho-test-magic"),
        pytest.param(KhoFdtProps.KhoCompatible, b"kho-v5\0", (), id="kho-string"),
        pytest.param(KhoFdtProps.KhoCompatible, b"kho-v1", (), id="kho-string-not-terminated"),
        pytest.param(KhoFdtProps.KhoCompatible, b"kho-v1 \0", (), id="kho-string-longer"),
        pytest.param(KhoFdtProps.KhoCompatible, b"\xff\xfe\0", (), id="kho-string-not-ascii"),
        pytest.param(KhoFdtProps.LuoCompatible, b"luo-v3\0", (), id="luo-tree-string"),
        pytest.param(KhoFdtProps.MemblockCompatible, b"memblock-v2\0", (), id="memblock-string"),
        pytest.param(KhoFdtProps.ChosenRange, bytes(64), (3, 2), id="cells"),
        pytest.param(Luo.Ser, b"luo-v6\0\0" + bytes(24), (8,), id="luo-string"),
        pytest.param(Luo.SessionBlock, u64(0, 52) + PAGE, (4096,), id="sessions-in-block"),
        pytest.param(Luo.SessionBlock, u64(0, 205) + bytes(65536), (16384,), id="sessions-16k"),
        pytest.param(Luo.FileBlock, u64(0, 64) + PAGE, (4096,), id="files-in-block"),
        pytest.param(Luo.SessionArray, u64(820) + PAGE * 17, (4096,), id="sessions-in-array"),
        pytest.param(Luo.FileArray, PAGE * 3, (4096, 129), id="files-in-array"),
        pytest.param(Luo.FlbPage, u64(1, 64) + PAGE, (4096,), id="flbs"),
        pytest.param(Luo.VerHdr, b"PUVL\2\0\0\0", (), id="feature-section-version"),
        pytest.param(KhoBlock, u64(0, 511) + PAGE, (4096, 8), id="block"),
        pytest.param(
            KhoBitmaps.Chunk, struct.pack("<QII", 0, 0, 256) + PAGE * 2, (4096,), id="chunk"
        ),
        pytest.param(
            KhoBitmaps.Chunk, struct.pack("<QII", 0, 52, 0) + PAGE, (4096,), id="chunk-order"
        ),
        pytest.param(IommuLuo.FlbVersioned, u64(2, 0, 0, 0), (), id="iommu-version"),
        pytest.param(IommuLuo.HwArrayV4, u64(0, 37) + PAGE * 2, (4096,), id="iommu-hw"),
        pytest.param(IommuLuo.DomainArrayV3, u64(0, 111) + PAGE, (4096,), id="iommu-domains"),
        pytest.param(IommuLuo.DeviceArrayV2, u64(0, 111) + PAGE, (4096,), id="iommu-devices"),
        pytest.param(IommuLuoRfc.DevicesPageV1, PAGE * 2, (4096, 63), id="iommu-rfc-devices"),
        pytest.param(IommufdLuo, u64(1 << 32), (), id="hwpts"),
        pytest.param(PciLuo.Ser, struct.pack("<IIQ", 3, 0, 0), (), id="pci-version"),
        pytest.param(PciLuo.SerU32, struct.pack("<II", 1, 2) + PAGE, (), id="pci-count"),
        pytest.param(PciLuo.DeviceBlock, u64(0, 511) + PAGE, (4096,), id="pci-block"),
        pytest.param(
            VfioPciLuo.CoreDeviceRfcV1, b"\0\0\1\x10\0\0" + PAGE * 3, (), id="vfio-config-size"
        ),
        pytest.param(QemuCpr, b"QCPS\0\0\0\1\0", (0,), id="cpr-magic"),
        pytest.param(QemuCpr, b"QCPR\0\0\0\2\0", (0,), id="cpr-version"),
        pytest.param(QemuCpr, b"QCPR\0\0\0\1\2", (0,), id="cpr-list"),
        pytest.param(QemuCpr, b"QCPR\0\0\0\1\0\5\3abc\0\0\0\1\0", (0,), id="cpr-subsection"),
    ],
)
def test_refused(parser: Any, data: bytes, params: tuple[int, ...]) -> None:
    with pytest.raises(PARSE_ERRORS):
        torture.objects(parse(parser, data, *params))


@pytest.mark.parametrize(
    ("parser", "data", "params", "attribute", "length"),
    [
        pytest.param(Luo.SessionBlock, u64(0, 51) + PAGE, (4096,), "sessions", 51, id="sessions"),
        pytest.param(Luo.FileBlock, u64(0, 63) + PAGE, (4096,), "files", 63, id="files"),
        pytest.param(Luo.SessionArray, u64(819) + PAGE * 17, (4096,), "sessions", 819, id="array"),
        pytest.param(Luo.FileArray, PAGE * 2, (4096, 128), "files", 128, id="files-in-array"),
        pytest.param(Luo.FlbPage, u64(1, 63) + PAGE, (4096,), "flbs", 63, id="flbs"),
        pytest.param(PciLuo.DeviceBlock, u64(0, 510) + PAGE, (4096,), "devices", 510, id="pci"),
        pytest.param(IommuLuo.HwArrayV4, u64(0, 36) + PAGE, (4096,), "objects", 36, id="hw"),
        pytest.param(IommuLuo.DomainArrayV4, u64(0, 102) + PAGE, (4096,), "objects", 102, id="dom"),
        pytest.param(IommuLuo.DeviceArrayV4, u64(0, 56) + PAGE, (4096,), "objects", 56, id="dev"),
        pytest.param(IommuLuo.DeviceArrayV3, u64(0, 72) + PAGE, (4096,), "objects", 72, id="dev-3"),
    ],
)
def test_a_full_page_is_accepted(
    parser: Any, data: bytes, params: tuple[int, ...], attribute: str, length: int
) -> None:
    parsed = parse(parser, data[: 4096 * 16], *params)
    assert len(getattr(parsed, attribute)) == length


@pytest.mark.parametrize(
    ("form", "carrier"), [("bare", b""), ("socket", b" "), ("number", b"\0\0\0\x0c")]
)
def test_cpr_stream(form: str, carrier: bytes) -> None:
    section = b"CprState/vfio devices"
    data = b"QCPR\0\0\0\1" + b"\1\0\0\0\5ram0\0\0\0\0\7" + carrier + b"\0"
    data += bytes([5, len(section)]) + section + b"\0\0\0\1"
    data += b"\1\0\0\0\4vf0\0" + struct.pack(">iII", -1, 2, 3) + b"\0"
    stream = parse(QemuCpr, data, QemuCpr.DescriptorForm[form])
    assert [(e.fd.name.name, e.fd.id) for e in stream.fds if e.more] == [(b"ram0", 7)]
    assert getattr(stream.fds[0].fd, "number", None) == (12 if form == "number" else None)
    (section_read,) = stream.subsections
    device = section_read.devices[0].device
    assert (device.name.name, device.devid, device.ioas_id, device.hwpt_id) == (b"vf0", -1, 2, 3)


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.name)
def test_streams_of_real_qemus(path: Path) -> None:
    form = QemuCpr.DescriptorForm.number if "exec" in path.name else QemuCpr.DescriptorForm.socket
    stream = parse(QemuCpr, path.read_bytes(), form)
    theirs = qemu_cpr.decode(path.read_bytes())
    found = [e.fd for e in stream.fds if e.more]
    assert [(f.name.name, f.id, getattr(f, "number", None)) for f in found] == [
        (f.name, f.id, f.fd) for f in theirs.fds
    ]
    assert b"ram0" in {f.name.name for f in found}
    assert len(stream.subsections) == (theirs.vfio_devices is not None)
    for wrong in set(QemuCpr.DescriptorForm) - {form}:
        with pytest.raises(PARSE_ERRORS):
            parse(QemuCpr, path.read_bytes(), wrong)


def test_feature_section() -> None:
    entry = b"memfd".ljust(48, b"\0") + struct.pack("<IIQQQ", 8, 0, 3, 1, 3)
    section = parse(Luo.FeatureSection, b"PUVL\1\0\0\0" + entry * 2)
    assert [(e.name.text, e.supp, e.req, e.active) for e in section.entries] == [
        (b"memfd", 3, 1, 3)
    ] * 2


def test_names_are_bytes() -> None:
    name = parse(CString, b"vm\x1b[2J\xff\0rest")
    assert name.text == b"vm\x1b[2J\xff"
    assert name.raw == b"vm\x1b[2J\xff\0rest"
    assert name.is_terminated
    assert not parse(CString, b"x" * 64).is_terminated


def test_capability_list_of_a_saved_state() -> None:
    records = struct.pack("<HBI", 16, 0, 4) + b"abcd" + struct.pack("<HBI", 0, 0, 0)
    state = parse(VfioPciLuo.SavedState, bytes(64) + records + b"trailing")
    assert [(c.cap_nr, c.size, c.data) for c in state.cap] == [(16, 4, b"abcd"), (0, 0, b"")]


def test_package_lists_every_parser() -> None:
    for name in specs.PARSERS:
        assert getattr(specs, name).__name__ == name
        assert name in dir(specs)
    with pytest.raises(AttributeError):
        specs.NoSuchParser  # noqa: B018


def test_short_torture() -> None:
    """A few thousand damaged buffers; ``python -m specs.torture`` runs any number."""
    report = torture.run(6_000, seed=20)
    assert report.findings == []
    assert report.buffers == 6_000
    assert report.accepted > 1_000
    assert report.refused.total() > 1_000


def test_torture_repeats_and_reports() -> None:
    """The same number gives the same buffer, and an unexpected exception is a finding."""
    target = torture.targets()[7]
    rngs = [torture.random.Random(5) for _ in range(2)]
    first, second = (torture.mutate(torture.seed_buffer(target, r), r) for r in rngs)
    assert first == second

    class Broken:
        def __init__(self, _io: Any) -> None:
            raise ZeroDivisionError("as a test")

    report = torture.Report()
    torture.one([torture.Target("Broken", Broken, ())], 1, 0, report)
    assert "ZeroDivisionError" in report.findings[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_noise(data: st.DataObject) -> None:
    """Arbitrary bytes with arbitrary parameters: parsed or refused, nothing else."""
    target = data.draw(st.sampled_from(torture.targets()))
    buffer = data.draw(st.binary(max_size=300))
    counts = st.one_of(st.sampled_from([0, 1, 4096, 16384]), st.integers(8, (1 << 64) - 1))
    params = [
        data.draw(st.sampled_from([4096, 16384, 65536]))
        if p in ("page_size", "len_entry")
        else data.draw(counts)
        for p in target.params
    ]
    with contextlib.suppress(PARSE_ERRORS):
        torture.objects(parse(target.parser, buffer, *params))
