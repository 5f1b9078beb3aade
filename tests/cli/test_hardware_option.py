"""``--hardware``: the machine of the next kernel decides; mistakes are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inspector.kernel import faults, scenario
from inspector.memory.elfcore import write_core
from tests.cli.conftest import Run

KERNEL = "linux-7.3+iommu-vw"
UNIT = "[[machine.iommu]]\nbase = 0xfed90000\n"
ALL = "".join(
    f'[[machine.device]]\nbdf = "0000:{bdf}"\ndriver = "{{driver}}"\n'
    for bdf in ("00:03.0", "00:04.0")
)
MACHINE = UNIT + ALL.format(driver="vfio-pci")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Images of a small machine with two devices, in both modes of VT-d, and of an SMMU."""
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for name, more, profile in (
        ("legacy", "", KERNEL),
        ("scalable", "scalable = true\n", KERNEL),
        ("smmuv3", 'type = "smmuv3"\n', KERNEL),
        ("dids", "first_domain_id = 500\n", KERNEL),
    ):
        arm = "smmuv3" in more
        text = f'kernel = "{profile}"\n[machine]\n'
        if arm:
            text += 'architecture = "aarch64"\npage_size = "4K"\n'
        text += MACHINE.replace("\n[[machine.device]]", f"\n{more}[[machine.device]]", 1)
        text += """
[[session]]
name = "vm"
[[session.file]]
token = 1
size = "1M"
seals = ["seal", "shrink", "grow"]
[[session.file]]
type = "iommufd"
token = 2
id = "fd"
[[session.file.ioas]]
name = "space"
map = [{ file = "0x1", size = "1M", iova = 0x100000 }]
[[session.file.hwpt]]
name = "all"
ioas = "space"
token = 7
[[session.file]]
type = "vfio-pci"
token = 3
bdf = "00:03.0"
iommufd = "fd"
hwpt = "all"
[[session.file]]
type = "vfio-pci"
token = 4
bdf = "00:04.0"
iommufd = "fd"
hwpt = "all"
"""
        found[name] = str(folder / f"{name}.elf")
        write_core(found[name], scenario.parse(text).run().memory)
    return found


@pytest.mark.parametrize(
    ("image", "machine", "outcome", "reason"),
    [
        ("legacy", MACHINE, "taken-over", ""),
        ("legacy", UNIT + ALL.format(driver="ice"), "file-error", "is not bound to vfio-pci"),
        ("legacy", UNIT, "file-error", "no device 0000:00:03.0 in this machine"),
        ("legacy", MACHINE.replace("0xfed90000", "0xfed91000"), "file-error", "has the token"),
        (
            "legacy", MACHINE.replace("\n[[", '\ntype = "smmuv3"\n[[', 1), "file-error",
            "no IOMMU of type 1",
        ),
        ("dids", MACHINE.replace("\n[[", "\ndomain_ids = 256\n[[", 1), "file-error", "DID 500"),
        ("dids", MACHINE, "taken-over", ""),
        ("scalable", MACHINE.replace("\n[[", "\nscalable = true\n[[", 1), "taken-over", ""),
        ("scalable", MACHINE, "cannot-tell", "runs in legacy mode here"),
        (
            "scalable",
            MACHINE.replace("\n[[", "\nscalable = true\n[[", 1)
            .replace('"vfio-pci"', '"vfio-pci"\nmax_pasid = 1048576'),
            "boot-fails", "max_pasid",
        ),
        ("smmuv3", MACHINE.replace("\n[[", '\ntype = "smmuv3"\n[[', 1), "taken-over", ""),
        (
            "smmuv3",
            MACHINE.replace(
                "\n[[", '\ntype = "smmuv3"\nregisters = { STRTAB_BASE_CFG = 1 }\n[[', 1
            ),
            "file-error", "STRTAB_BASE_CFG is 0x1",
        ),
    ],
)  # fmt: skip
def test_the_machine_decides(
    kho: Run, tmp_path: Path, images: dict[str, str], image: str, machine: str, outcome: str,
    reason: str,
) -> None:  # fmt: skip
    (tmp_path / "machine.toml").write_text(machine)
    option = ("--hardware", str(tmp_path / "machine.toml"), "--format", "json")
    done = kho("consume", images[image], "--as", KERNEL, "--finish", *option)
    document = json.loads(done.out)
    assert document["outcome"] == outcome, document["reasons"]
    assert reason in json.dumps(document["reasons"])
    verdict = json.loads(kho("compat", images[image], "--to", KERNEL, *option).out)["verdicts"][0]
    assert verdict["outcome"] == outcome
    # Without the option all of it fits.
    plain = kho("consume", images[image], "--as", KERNEL, "--format", "json")
    assert json.loads(plain.out)["outcome"] == "taken-over"


def test_scenarios_serve(kho: Run, tmp_path: Path, images: dict[str, str]) -> None:
    """A whole scenario, or a shipped one by its name."""
    (tmp_path / "s.toml").write_text(f'kernel = "{KERNEL}"\n[machine]\nram = ["1G"]\n{MACHINE}')
    for name in (str(tmp_path / "s.toml"), "iommufd"):
        done = kho("consume", images["legacy"], "--as", KERNEL, "--hardware", name)
        assert done.status == 0, done.text + done.err


def test_a_broken_image_on_a_known_machine(kho: Run, tmp_path: Path) -> None:
    made: Any = scenario.load("iommufd").run()
    faults.inject(made, "unit-token-unknown")
    write_core(tmp_path / "broken.elf", made.memory)
    done = kho("consume", str(tmp_path / "broken.elf"), "--as", KERNEL, "--hardware", "iommufd")
    assert done.status == 5 or done.status == 4
    assert "no IOMMU of type 1 has the token" in done.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.toml:1: machine: is missing"),
        ("[machine]\nx = 1\n", "m.toml:2: machine.x: no such key 'x'"),
        ("[[machine.iommu]]\n", "m.toml:1: machine.iommu[0].base: is missing"),
        ("[[machine.iommu]]\nbase = 'x'\n", "m.toml:2: machine.iommu[0].base: 'x' is no number"),
        ("[[machine.iommu]]\nbase = 1\nscalabel = true", "m.toml:3: machine.iommu[0].scalabel: no"),
        ("[[machine.iommu]]\nbase = 1\ntype = 'amd'", "m.toml:3: machine.iommu[0].type: no such"),
        ("[[machine.device]]\nbdf = '0:99.0'", "m.toml:2: machine.device[0].bdf: "),
        ("[[machine.device]]\nbdf = '00:03.0'\nunit = 5", "m.toml:3: machine.device[0].unit: no"),
        (
            "[[machine.device]]\nbdf = '00:03.0'\n[[machine.device]]\nbdf = '00:03.0'",
            "m.toml:1: machine: two PCI devices have one place",
        ),
        (UNIT + UNIT, "m.toml:1: machine: two IOMMU units have one register base"),
        ("[machine\n", "m.toml:1: "),
        ("[machine]\nram = ['1G']\n", "m.toml:2: machine.ram: no such key 'ram'"),
        ("[machine]\n[extra]\n", "m.toml:2: extra: no such key 'extra'"),
        ("machine = 5", "m.toml:1: machine: is not a table"),
        ("kernel = 'linux-9'", "m.toml:1: kernel: no kernel 'linux-9'"),
        (b"\xff\xfe", "m.toml: not UTF-8 text"),
    ],
)
def test_mistakes_are_one_line(
    kho: Run, tmp_path: Path, images: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    text: str | bytes, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for verb in (("consume", images["legacy"], "--as"), ("compat", images["legacy"], "--to")):
        done = kho(*verb, KERNEL, "--hardware", "m.toml")
        assert done.status == 2
        assert done.out == b""
        assert done.err.startswith(f"kho: {message}"), done.err
        assert done.err.count("\n") == 1


def test_other_mistakes(kho: Run, tmp_path: Path, images: dict[str, str]) -> None:
    for name, message in (
        ("none.toml", "none.toml: no such file"),
        ("iomufd", "no such scenario 'iomufd'; did you mean 'iommufd'?"),
        (str(tmp_path), "Is a directory"),
    ):
        done = kho("consume", images["legacy"], "--as", KERNEL, "--hardware", name)
        assert done.status == 2
        assert message in done.err
        assert done.err.count("\n") == 1
    done = kho("compat", "--from", KERNEL, "--to", KERNEL, "--hardware", "iommufd")
    assert done.status == 2
    assert "--hardware goes with an image" in done.err
