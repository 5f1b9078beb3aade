"""The specifications as files: complete, in one style, and the committed parsers current."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kaitai_support import ROOT, all_types, load_specs

import specs
from specs import generate

REQUIRED_META = {"id", "title", "license", "ks-version"}


@pytest.mark.parametrize("name", load_specs())
def test_meta_and_doc(name: str) -> None:
    spec = load_specs()[name]
    assert set(spec["meta"]) >= REQUIRED_META
    assert spec["meta"]["id"] == name
    assert spec["meta"]["license"] == "MIT"
    assert spec["doc"].strip()


def attributes(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for attribute in spec.get("seq", []):
        yield attribute["id"], attribute
    yield from spec.get("instances", {}).items()


def test_bits_fit_the_javascript_runtime() -> None:
    for entry in all_types().values():
        for name, attribute in attributes(entry.spec):
            kind = attribute.get("type", "")
            if isinstance(kind, str) and kind[:1] == "b" and kind[1:].isdigit():
                assert int(kind[1:]) <= 32, f"{entry.name}.{name}"


def test_no_switch_in_a_sequence() -> None:
    """The C++ target frees an uninitialised pointer when a switched member is refused."""
    for entry in all_types().values():
        for name, attribute in attributes(entry.spec):
            assert not isinstance(attribute.get("type"), dict), f"{entry.name}.{name}"


def test_enums_do_not_cut_64_bit_members() -> None:
    for entry in all_types().values():
        for name, attribute in attributes(entry.spec):
            assert "enum" not in attribute or attribute.get("type") != "u8", f"{entry.name}.{name}"


def test_package_table_is_complete() -> None:
    assert sorted(specs.PARSERS.values()) == sorted(load_specs())


def test_lines_are_short() -> None:
    for path in generate.spec_files():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 100, f"{path.name}:{number}"


def test_versions_are_pinned_together() -> None:
    package = (generate.SPECS / "package.json").read_text("utf-8")
    assert f'"kaitai-struct-compiler": "{generate.COMPILER_VERSION}"' in package
    assert f'"kaitai-struct": "{generate.COMPILER_VERSION}"' in package
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = "kaitaistruct>=" + generate.COMPILER_VERSION.removesuffix(".0")
    assert any(d.startswith(wanted) for d in project["project"]["dependencies"])
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {"specs", "specs.*"} <= set(found)


def test_generated_parsers_are_current() -> None:
    try:
        sources = generate.python_sources()
    except generate.ToolchainMissingError as error:
        pytest.skip(f"kaitai-struct-compiler: {error}")
    assert generate.stale(sources) == []


def test_check_reports_a_stale_file(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(generate, "python_sources", lambda: {"luo.py": "changed"})
    assert generate.main(["--check"]) == 1
    assert "stale: specs/generated/luo.py" in capsys.readouterr().out


def test_check_without_node_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(generate.shutil, "which", lambda tool: None)
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out.startswith("SKIPPED: node is not installed")
    assert generate.main([]) == 4


def test_check_without_network_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        return subprocess.CompletedProcess(args, 1, "", "npm error code ENOTFOUND\n")

    monkeypatch.setenv("KHO_SPECS_CACHE", str(tmp_path))
    monkeypatch.setattr(generate.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(generate.subprocess, "run", failing)
    assert generate.main(["--check"]) == 0
    assert "npm ci failed: npm error code ENOTFOUND" in capsys.readouterr().out


def test_compiler_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        generate.node_modules()
    except generate.ToolchainMissingError as error:
        pytest.skip(f"kaitai-struct-compiler: {error}")
    broken = tmp_path / "broken.ksy"
    broken.write_text("meta:\n  id: broken\nseq:\n  - id: x\n    type: no_such\n")
    monkeypatch.setattr(generate, "spec_files", lambda: [broken])
    with pytest.raises(RuntimeError, match=r"broken\.ksy: "):
        generate.compile_specs("python", tmp_path)


def test_specs_do_not_need_the_codec() -> None:
    """The second witness must not lean on the first: only the error classes are shared."""
    code = (
        "import sys, specs.reader\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('abi', 'inspector', 'kho')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['abi', 'abi.errors']"
