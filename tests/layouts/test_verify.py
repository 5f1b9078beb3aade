"""Real kernels' layouts against the census and the schemas; changed ones get their verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from abi import registry
from abi.errors import UsageError
from inspector.cli.app import app
from inspector.layouts import sides
from inspector.layouts.compare import (
    COVERED_BY,
    ChangeKind,
    Verdict,
    diff_struct,
    side_of_generation,
)
from inspector.layouts.measure import measure
from inspector.layouts.measured import MeasuredKernel, MeasuredStruct
from inspector.layouts.verify import resolve_generation, verify

DATA = Path(__file__).parent.parent / "data"
RECORDS = DATA / "abi" / "kernels"
KERNELS = sorted(path.stem for path in RECORDS.glob("*.json"))
CENSUS = json.loads((DATA / "abi" / "layouts.json").read_text())["generations"]
#: What each released kernel is, layer by layer.
EXPECTED = {
    "6.18": {"kho": "kho-v1-bitmap-page", "vmalloc": "vmalloc-v1"},
    "6.19": {"kho": "kho-v1-bitmap-page", "luo": "luo-v1", "memfd": "memfd-v1"},
    "7.1": {"kho": "kho-v3", "luo": "luo-v1-flb", "memfd": "memfd-v2"},
    "7.2": {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2", "block": "block-v1"},
    "7.3": {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2", "block": "block-v1"},
}


def record(name: str) -> MeasuredKernel:
    return measure(str(RECORDS / f"{name}.json"))


def release(name: str) -> str:
    return ".".join(name.removeprefix("linux-").split(".")[:2])


@pytest.mark.parametrize("name", KERNELS)
def test_census_agrees_with_the_kernel(name: str) -> None:
    """Every struct of the census that the kernel has: same names, offsets, sizes."""
    kernel = record(name)
    (generation,) = [g for g in CENSUS if g["id"] == f"linux-{release(name)}"]
    seen = 0
    for item in generation["structs"]:
        # The census was compiled for pages of 4K where sizes depend on them.
        said = MeasuredStruct.from_json(item)
        for measured in kernel.structs.get(said.name, ()):
            assert said.size == measured.size, said.name
            assert [c.message for c in diff_struct(said, measured) if c.breaks] == []
            plain = [f for f in said.fields if not f.flexible]
            assert [f.name for f in plain] == [f.name for f in measured.fields if not f.flexible]
            seen += 1
    assert seen >= (9 if release(name) == "6.18" else 19)


@pytest.mark.parametrize("name", KERNELS)
def test_every_layer_verifies(name: str) -> None:
    report = verify(record(name))
    assert report.verdict is Verdict.NO_CHANGE
    assert report.page_size == 4096
    assert report.unknown == ()
    found = {r.layer: r.generation.id for r in report.layers}
    assert EXPECTED[release(name)].items() <= found.items()
    assert all(not r.also for r in report.layers), "a tie between generations"
    for layer in report.layers:
        assert layer.matched or not layer.generation.layouts
    demanded = verify(record(name), generations=resolve_generation(release(name)))
    assert demanded.verdict is Verdict.NO_CHANGE


def test_without_strings_the_layouts_decide() -> None:
    kernel = replace(record("linux-7.3.4"), strings=None, release="")
    found = {r.layer: r.generation.id for r in verify(kernel).layers}
    assert found["luo"] == "luo-v5"
    assert found["memfd"] == "memfd-v2"
    assert verify(kernel).verdict is Verdict.NO_CHANGE


def test_a_kernel_without_kho() -> None:
    empty = MeasuredKernel("x", "btf", {})
    report = verify(empty)
    assert report.layers == ()
    demanded = verify(empty, generations=resolve_generation("7.3"))
    assert demanded.verdict is Verdict.INCOMPATIBLE


# -- deliberate changes --------------------------------------------------------------------


def changed(struct: str, edit: Any, strings: dict[str, str] | None = None) -> MeasuredKernel:
    """The record of 7.3.4 with one struct edited, and strings renamed."""
    data = json.loads((RECORDS / "linux-7.3.4.json").read_text())
    (item,) = [s for s in data["structs"] if s["name"] == struct]
    edit(item)
    data["strings"] = [(strings or {}).get(s, s) for s in data["strings"]]
    return MeasuredKernel.from_json(data)


def add_field(item: dict[str, Any]) -> None:
    item["fields"].append({"name": "extra", "offset": item["size"], "type": "u64", "size": 8})
    item["size"] += 8


def swap(item: dict[str, Any]) -> None:
    fields = {f["name"]: f for f in item["fields"]}
    fields["data"]["offset"], fields["token"]["offset"] = 56, 48


def narrow(item: dict[str, Any]) -> None:
    field = item["fields"][-1]
    field.update(size=4, type="u32")


def rename(item: dict[str, Any]) -> None:
    item["fields"][-1]["name"] = "cookie"


def retype(item: dict[str, Any]) -> None:
    item["fields"][-1].update(type="struct file *", kind="pointer")


def drop(item: dict[str, Any]) -> None:
    del item["fields"][-1]


@pytest.mark.parametrize(
    ("edit", "kinds", "verdict"),
    [
        (add_field, {ChangeKind.SIZE, ChangeKind.FIELD_ADDED}, "unannounced"),
        (swap, {ChangeKind.FIELD_MOVED}, "unannounced"),
        (narrow, {ChangeKind.FIELD_RESIZED}, "unannounced"),
        (drop, {ChangeKind.FIELD_REMOVED}, "unannounced"),
        (rename, {ChangeKind.FIELD_RENAMED}, "compatible"),
        (retype, {ChangeKind.FIELD_TYPE}, "compatible"),
    ],
)
def test_changed_structs(edit: Any, kinds: set[ChangeKind], verdict: str) -> None:
    expected = {
        "unannounced": Verdict.INCOMPATIBLE_UNANNOUNCED,
        "compatible": Verdict.COMPATIBLE,
    }[verdict]
    kernel = changed("luo_file_ser", edit)
    report = verify(kernel)
    assert report.verdict is expected
    (luo,) = [r for r in report.layers if r.verdict is not Verdict.NO_CHANGE]
    assert (luo.layer, luo.generation.id, luo.announced) == ("luo", "luo-v5", False)
    assert {c.kind for c in luo.changes} == kinds
    assert {c.struct for c in luo.changes} == {"luo_file_ser"}
    assert "luo_file_ser" not in luo.matched
    old = sides.Abi("old", kernel=record("linux-7.3.4"))
    diffs = sides.diff(old, sides.Abi("new", kernel=kernel))
    assert {d.layer: d.verdict for d in diffs if d.changes} == {"luo": expected}


def test_a_changed_struct_under_a_new_string() -> None:
    kernel = changed("luo_file_ser", add_field, {"luo-v5": "luo-v6"})
    report = verify(kernel)
    assert report.verdict is Verdict.INCOMPATIBLE
    (luo,) = [r for r in report.layers if r.changes]
    assert luo.announced is True
    assert {c.kind for c in luo.changes} == {
        ChangeKind.SIZE,
        ChangeKind.FIELD_ADDED,
        ChangeKind.STRING,
    }
    diffs = sides.diff(
        sides.Abi("old", kernel=record("linux-7.3.4")), sides.Abi("new", kernel=kernel)
    )
    assert [d.verdict for d in diffs if d.changes] == [Verdict.INCOMPATIBLE]


def test_a_change_in_a_struct_that_the_kho_string_covers() -> None:
    kernel = changed("kho_block_header_ser", add_field)
    (block,) = [r for r in verify(kernel).layers if r.changes]
    assert (block.layer, block.verdict) == ("block", Verdict.INCOMPATIBLE_UNANNOUNCED)
    kernel = changed("kho_block_header_ser", add_field, {"kho-v4": "kho-v5"})
    verdicts = {r.layer: r.verdict for r in verify(kernel).layers if r.changes}
    assert verdicts["block"] is Verdict.INCOMPATIBLE


def test_a_changed_constant() -> None:
    kernel = record("linux-7.3.4")
    kernel = replace(kernel, constants={**kernel.constants, "KHO_TREE_MAX_DEPTH": 7})
    (kho,) = [r for r in verify(kernel).layers if r.changes]
    assert kho.verdict is Verdict.INCOMPATIBLE_UNANNOUNCED
    assert [c.kind for c in kho.changes] == [ChangeKind.CONSTANT]


def test_reserved_room_put_to_use() -> None:
    side = registry.get("iommufd", "iommufd-24")
    assert side is not None
    old = MeasuredStruct.from_json(
        {
            "name": "s", "size": 16,
            "fields": [
                {"name": "a", "offset": 0, "type": "u64", "size": 8},
                {"name": "reserved", "offset": 8, "type": "u64", "size": 8},
            ],
        }
    )  # fmt: skip
    new = MeasuredStruct.from_json(
        {
            "name": "s", "size": 16,
            "fields": [
                {"name": "a", "offset": 0, "type": "u64", "size": 8},
                {"name": "b", "offset": 8, "type": "u32", "size": 4},
                {"name": "reserved", "offset": 12, "type": "u32", "size": 4},
            ],
        }
    )  # fmt: skip
    changes = list(diff_struct(old, new))
    assert not any(c.breaks for c in changes if c.field == "b")
    assert {c.kind for c in changes} >= {ChangeKind.FIELD_ADDED}
    gone = replace(new, fields=new.fields[:2])
    kinds = {c.kind for c in diff_struct(old, gone)}
    assert kinds == {ChangeKind.RESERVED_USED, ChangeKind.FIELD_ADDED}
    assert not any(c.breaks for c in diff_struct(old, gone))


def test_unknown_structs_are_named() -> None:
    data = json.loads((RECORDS / "linux-7.3.4.json").read_text())
    data["structs"].append({"name": "luo_new_ser", "size": 8, "fields": []})
    report = verify(MeasuredKernel.from_json(data))
    assert report.unknown == ("luo_new_ser",)


def test_two_layouts_of_one_name() -> None:
    data = json.loads((RECORDS / "linux-7.3.4.json").read_text())
    data["structs"].append({"name": "luo_ser", "size": 8, "fields": []})
    report = verify(MeasuredKernel.from_json(data))
    (luo,) = [r for r in report.layers if r.changes]
    assert [c.kind for c in luo.changes] == [ChangeKind.AMBIGUOUS]
    assert luo.verdict is Verdict.COMPATIBLE


# -- generations and kernels side by side ----------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "verdicts"),
    [
        ("7.2", "7.3", {}),
        ("7.1", "7.2", {"kho": Verdict.INCOMPATIBLE, "luo": Verdict.INCOMPATIBLE}),
        (
            "kho=kho-v1-bitmap512",
            "kho=kho-v1-bitmap-page",
            {"kho": Verdict.INCOMPATIBLE_UNANNOUNCED},
        ),
        ("iommufd-13", "iommufd-24", {"iommufd": Verdict.INCOMPATIBLE_UNANNOUNCED}),
        (
            "iommu-v3-2026-06-base",
            "iommu=iommu-v3-2026-06",
            {"iommu": Verdict.INCOMPATIBLE_UNANNOUNCED},
        ),
    ],
)
def test_diff_of_generations(old: str, new: str, verdicts: dict[str, Verdict]) -> None:
    diffs = sides.diff(sides.resolve(old), sides.resolve(new))
    bad = {d.layer: d.verdict for d in diffs if d.verdict not in ("NO_CHANGE", "COMPATIBLE")}
    assert bad == verdicts


@pytest.mark.parametrize("name", KERNELS)
def test_diff_of_a_kernel_and_its_generations(name: str) -> None:
    for old, new in ((release(name), name), (name, release(name))):
        names = [str(RECORDS / f"{s}.json") if "linux" in s else s for s in (old, new)]
        diffs = sides.diff(*map(sides.resolve, names))
        assert {d.verdict for d in diffs} == {Verdict.NO_CHANGE}


def test_names_of_generations() -> None:
    assert resolve_generation("linux-7.3")["luo"].id == "luo-v5"
    assert list(resolve_generation("luo=luo-v5")) == ["luo"]
    assert resolve_generation("memfd-v2-early")["memfd"].id == "memfd-v2-early"
    with pytest.raises(UsageError, match="called 'nonsense'"):
        resolve_generation("nonsense")
    with pytest.raises(UsageError, match="no layer"):
        resolve_generation("nonsense=1")
    with pytest.raises(UsageError, match="is no file"):
        sides.resolve("nonsense")


# -- from source to verdict ------------------------------------------------------------------

SOURCE = """
typedef unsigned long long u64; typedef unsigned int u32;
struct luo_ser { char compatible[8]; u64 liveupdate_num; u64 sessions_pa; u64 flbs_pa; } a;
struct luo_file_ser { char compatible[48]; u64 data; @TOKEN@ token; } __attribute__((packed)) b;
const char *strings[] = { "luo-v5", "kho-v4" };
"""


@pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("pahole")), reason="needs gcc and pahole"
)
@pytest.mark.parametrize("prefer", ["btf", "dwarf"])
def test_a_compiled_change(prefer: str, tmp_path: Path) -> None:
    if prefer == "dwarf":
        pytest.importorskip("drgn")
    verdicts = []
    for token in ("u64", "u32"):
        source, obj = tmp_path / "a.c", tmp_path / f"{token}.o"
        source.write_text(SOURCE.replace("@TOKEN@", token))
        subprocess.run(["gcc", "-g", "-c", str(source), "-o", str(obj)], check=True)
        subprocess.run(["pahole", "-J", str(obj)], check=True)
        measured = measure(str(obj), prefer=prefer)
        assert measured.origin == prefer
        assert measured.strings is not None
        assert {"luo-v5", "kho-v4"} <= measured.strings
        verdicts.append(verify(measured).verdict)
    assert verdicts == [Verdict.NO_CHANGE, Verdict.INCOMPATIBLE_UNANNOUNCED]


# -- the command line ------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["abi", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_command_verify(tmp_path: Path) -> None:
    path = str(RECORDS / "linux-7.3.4.json")
    status, text = run("verify", path)
    assert (status, text.splitlines()[-1]) == (0, "NO_CHANGE")
    status, text = run("verify", path, "--generation", "7.1", "--format", "json")
    document = json.loads(text)
    assert status == 4
    assert document["schema_version"] == 1
    assert document["verdict"] == "INCOMPATIBLE"
    luo = next(r for r in document["layers"] if r["layer"] == "luo")
    assert luo["announced"] is True
    out = tmp_path / "record.json"
    assert run("verify", path, "--record", str(out))[0] == 0
    assert measure(str(out)).structs == measure(path).structs


def test_command_verify_unannounced(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(changed("luo_file_ser", add_field).to_json()))
    status, text = run("verify", str(path))
    assert status == 4
    assert "KHO-ABI-020  ! the layout changed, the compatible string did not" in text
    status, text = run("verify", str(path), "-f", "sarif")
    assert status == 4
    log = json.loads(text)
    (run_,) = log["runs"]
    codes = [result["ruleId"] for result in run_["results"]]
    assert codes == ["KHO-ABI-003", "KHO-ABI-005", "KHO-ABI-020"]
    rules = [rule["id"] for rule in run_["tool"]["driver"]["rules"]]
    assert [rules[r["ruleIndex"]] for r in run_["results"]] == codes
    assert {r["level"] for r in run_["results"]} == {"error", "warning"}
    where = run_["results"][0]["locations"][0]
    assert where["physicalLocation"]["artifactLocation"]["uri"] == "kernel.json"
    assert where["logicalLocations"][0]["fullyQualifiedName"] == "luo_file_ser"


def test_command_verify_nothing(tmp_path: Path) -> None:
    status, text = run("verify", str(DATA / "btf" / "sample.btf"))
    assert status == 16
    assert "no KHO structs" in text
    status, text = run("verify", str(DATA / "btf" / "sample.btf"), "-f", "sarif")
    assert json.loads(text)["runs"][0]["results"][0]["ruleId"] == "KHO-ABI-022"


def test_command_diff() -> None:
    old, new = str(RECORDS / "linux-7.1.13.json"), str(RECORDS / "linux-7.3.4.json")
    status, text = run("diff", old, new)
    assert (status, text.splitlines()[-1]) == (4, "INCOMPATIBLE")
    status, text = run("diff", old, old, "--format", "json")
    assert (status, json.loads(text)["verdict"]) == (0, "NO_CHANGE")
    status, text = run("diff", "iommufd-13", "iommufd-24", "--format", "sarif")
    assert status == 4
    assert "KHO-ABI-020" in {r["ruleId"] for r in json.loads(text)["runs"][0]["results"]}


@pytest.mark.parametrize("page_size", [0x1000, 0x4000, 0x10000])
@pytest.mark.parametrize("generation", [str(g) for g in registry.every() if g.layouts])
def test_every_generation_is_found_again(generation: str, page_size: int) -> None:
    """A kernel with exactly the structs and strings of a generation fits that one, or its twin."""
    chosen = registry.get(*generation.split("=", 1))
    side = side_of_generation(chosen, page_size)
    strings = set(chosen.strings)
    if cover := COVERED_BY.get(chosen.layer):
        releases = set(chosen.kernels)
        twin = next(g for g in registry.generations(cover) if releases & set(g.kernels))
        strings |= set(twin.strings)
    kernel = MeasuredKernel(
        "made", "record", side.structs, side.constants, frozenset(strings), byteorder="little"
    )
    report = verify(kernel, page_size=page_size)
    (layer,) = [r for r in report.layers if r.layer == chosen.layer]
    assert layer.verdict is Verdict.NO_CHANGE
    found = {g.id for g in (layer.generation, *layer.also)}
    assert chosen.id in found
    assert all(registry.get(chosen.layer, i).layouts.keys() == chosen.layouts.keys() for i in found)
