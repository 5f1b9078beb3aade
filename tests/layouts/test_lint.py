"""The linter's rules, on structs that have bitten and on ones that are fine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inspector.cli.app import app
from inspector.findings import Severity
from inspector.layouts import sides
from inspector.layouts.lint import WHY, Rule, lint
from inspector.layouts.measured import MeasuredField, MeasuredStruct
from inspector.layouts.present import MEANINGS

RECORDS = Path(__file__).parent.parent / "data" / "abi" / "kernels"


def struct(name: str, size: int, *fields: MeasuredField) -> MeasuredStruct:
    return MeasuredStruct.of(name, size, fields)


def field(
    name: str, offset: int, type_: str = "u64", size: int = 8, **more: object
) -> MeasuredField:
    kind = "pointer" if type_.endswith("*") else type_.split(" ")[0]
    kind = kind if kind in ("pointer", "enum", "bool", "struct") else "int"
    more.setdefault("alignment", min(size, 8))
    return MeasuredField(name, offset, size, type_, kind, **more)  # type: ignore[arg-type]


VERSION = field("version", 0, "u32", 4)
PAD = field("reserved", 4, "u32", 4)


@pytest.mark.parametrize(
    ("item", "rules"),
    [
        (struct("a_ser", 16, VERSION, PAD, field("x", 8)), set()),
        (
            struct("a_ser", 8, VERSION, field("b", 4, "u32", 4, bit_size=1)),
            {Rule.BIT_FIELD, Rule.PADDING},
        ),
        (struct("a_ser", 8, VERSION, field("b", 4, "enum e", 4)), {Rule.ENUM}),
        (struct("a_ser", 5, VERSION, field("b", 4, "bool", 1)), {Rule.BOOL}),
        (struct("a_ser", 16, VERSION, PAD, field("b", 8, "unsigned long")), {Rule.LONG}),
        (struct("a_ser", 16, VERSION, PAD, field("b", 8, "size_t")), {Rule.LONG}),
        (struct("a_ser", 16, VERSION, PAD, field("b", 8, "struct file *")), {Rule.POINTER}),
        (struct("a_ser", 16, VERSION, field("b", 8)), {Rule.PADDING}),
        (struct("a_ser", 12, VERSION, field("b", 4)), {Rule.UNALIGNED}),
        (
            struct("a_ser", 17, VERSION, PAD, field("b", 8), field("c", 16, "u8", 1)),
            {Rule.UNALIGNED},
        ),
        (struct("a_ser", 8, VERSION, field("token", 4, "u32", 4)), {Rule.NARROW}),
        (struct("a_ser", 8, VERSION, field("table_phys", 4, "u32", 4)), {Rule.NARROW}),
        (struct("a_ser", 8, field("x", 0)), {Rule.NO_VERSION}),
        (struct("a_hdr_ser", 16, VERSION, PAD, field("next", 8)), {Rule.NO_LENGTH}),
        (
            struct("an_ioctl", 12, field("size", 0, "u32", 4), field("id", 4)),
            {Rule.IOCTL_SIZE, Rule.IOCTL_RESERVED, Rule.UNALIGNED},
        ),
        (
            struct("an_ioctl", 8, field("size", 0, "u32", 4), field("flags", 4, "u32", 4)),
            set(),
        ),
    ],
)
def test_rules(item: MeasuredStruct, rules: set[Rule]) -> None:
    assert {hazard.rule for hazard in lint([item])} == rules


def test_mixed_packing() -> None:
    inner = struct("inner_ser", 16, VERSION, field("x", 8))
    outer = struct(
        "outer_ser", 21, field("version", 0, "u32", 4), field("b", 4, "u8", 1),
        field("i", 5, "struct inner_ser", 16, alignment=8),
    )  # fmt: skip
    found = lint([inner, outer])
    assert {h.where for h in found if h.rule is Rule.MIXED_PACKING} == {"outer_ser.i"}


def test_versions_from_strings_and_embedding() -> None:
    item = struct("a_ser", 8, field("x", 0))
    assert lint([item], versioned=lambda name: name == "a_ser") == []
    outer = struct("b_ser", 16, VERSION, PAD, field("a", 8, "struct a_ser"))
    assert lint([item, outer]) == []


def of(text: str) -> dict[str, set[str]]:
    hazards, _ = sides.lint_abi(sides.resolve(text))
    out: dict[str, set[str]] = {}
    for hazard in hazards:
        out.setdefault(hazard.rule.name, set()).add(hazard.where)
    return out


def test_what_the_postings_did() -> None:
    rfc = of("iommu=iommu-rfc-v2-2025-12")
    assert rfc["BIT_FIELD"] >= {"iommu_obj_ser.deleted", "iommu_obj_ser.incoming"}
    assert "iommu_domain_ser.restored_domain" in rfc["POINTER"]
    assert "device_ser.domain_iommu_ser" in rfc["MIXED_PACKING"]
    assert "iommu_ser" in rfc["PADDING"]
    first = of("iommufd-13")
    assert first["IOCTL_SIZE"] == {"iommu_hwpt_lu_set_preserve"}
    assert "iommufd_hwpt_lu.token" in first["NARROW"]
    assert "iommufd_hwpt_lu.reclaimed" in first["BOOL"]
    assert of("vfio-pci-v2-iommufd")["NARROW"] == {"vfio_iommufd_ser.token"}


def test_a_real_kernel() -> None:
    found = of(str(RECORDS / "linux-7.3.4.json"))
    assert found["BIT_FIELD"] == {"memfd_luo_folio_ser.pfn", "memfd_luo_folio_ser.flags"}
    assert "liveupdate_session_preserve_fd" in found["IOCTL_RESERVED"]
    assert "liveupdate_session_finish" not in found["IOCTL_RESERVED"]
    assert "POINTER" not in found


def test_rules_are_explained() -> None:
    assert set(WHY) == set(Rule)
    assert set(map(str, Rule)) <= MEANINGS.keys()
    assert all(hazard.severity in (Severity.INFO, Severity.WARNING)
               for hazard in lint([struct("a_ser", 8, field("x", 0))]))  # fmt: skip


def test_command() -> None:
    path = str(RECORDS / "linux-7.3.4.json")
    result = CliRunner().invoke(app, ["abi", "lint", path, "memfd_luo_folio_ser"])
    assert result.exit_code == 1
    assert "KHO-ABI-101  warning  memfd_luo_folio_ser.pfn is a bit-field" in result.stdout
    result = CliRunner().invoke(app, ["abi", "lint", path, "luo_ser", "-f", "json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["findings"] == []
    result = CliRunner().invoke(app, ["abi", "lint", "iommufd-13", "-f", "sarif"])
    levels = {r["level"] for r in json.loads(result.stdout)["runs"][0]["results"]}
    assert "warning" in levels
    result = CliRunner().invoke(app, ["abi", "lint", path, "no_such_struct"])
    assert "no struct 'no_such_struct'" in str(result.exception)
