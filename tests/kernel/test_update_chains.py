"""Three updates: what a kernel took over it hands over again, every kind of file, no page lost."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import pytest
from meaning import found_by, meant_by
from page_accounts import check_pages

from inspector import image as decoded_image
from inspector.findings import Outcome, Severity
from inspector.kernel import scenario
from inspector.kernel.incoming.consumer import consume
from inspector.kernel.incoming.inheritance import KINDS
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.outgoing.vfio import VfioDevice
from inspector.kernel.toml_file import ScenarioError

#: Scenario, the kernel in its place, and the kernels that take over one after the other.
CHAINS = {
    "guest memory": ("guest-memfd", None, [None] * 3),
    "caretaker": ("kvm-caretaker", None, [None] * 3),
    "version word": ("iommufd", None, [None] * 3),
    "7.1 iommu v2": ("iommu-v2", None, [None] * 3),
    "v3 scalable": ("iommu-v3-scalable", None, [None] * 3),
    "rfc v2": ("iommu-rfc-v2", "linux-7.0+iommu-rfc-v2+memfd=memfd-v2", [None] * 3),
    "v1": ("iommu-v1", "linux-7.0+iommu-v1+memfd=memfd-v2", [None] * 3),
    "v1 partial": ("iommu-v1", "linux-7.1+iommu-v1+iommu=iommu-v1-2026-02-partial", [None] * 3),
    "v3 base": ("iommufd", "linux-7.1+iommu-v3+iommu=iommu-v3-2026-06-base", [None] * 3),
    "version base": ("iommufd", "linux-7.3+iommu-vw+iommu=iommu-v4-version-field-base", [None] * 3),
    "smmuv3": ("smmuv3", None, [None] * 3),
    "smmuv3 of the version word": ("smmuv3", "linux-7.3+iommu-vw", [None] * 3),
    "vfio rfc v1": ("vfio-rfc-v1", None, [None] * 3),
    "features": ("linux-7.3", "linux-7.3+luo=luo-features+memfd=memfd-features", [None] * 3),
    "arm64 64K": ("linux-7.3-arm64-64k", None, [None] * 3),
    "early memfd": ("linux-7.3", "linux-7.3+memfd=memfd-v2-early", ["linux-7.3"] * 3),
    "everything": ("chain-everything", None, [None] * 3),
    # A change of release where both sides write the same forms.
    "7.2 to 7.3": (
        "iommufd", "linux-7.2+iommu-vw", ["linux-7.2+iommu-vw", "linux-7.3+iommu-vw", None],
    ),
    "7.3 to 7.2": (
        "guest-memfd", None,
        ["linux-7.2+guest-memfd+hugetlb+tmpfs", None, "linux-7.3+guest-memfd+hugetlb+tmpfs"],
    ),
    "contiguous lists": ("linux-6.19", None, [None] * 3),
    "machines without attributes": (
        "kvm-caretaker", "linux-7.2+kvm-caretaker", ["linux-7.3+kvm-caretaker", None, None],
    ),
}  # fmt: skip


def text_of(name: str, kernel: str | None) -> str:
    text = resources.files("inspector.kernel.scenario").joinpath(f"shipped/{name}.toml").read_text()
    text = text.split("\n[[update]]")[0]
    if kernel is not None:
        own = tomllib.loads(text)["kernel"]
        text = text.replace(f'kernel = "{own}"', f'kernel = "{kernel}"', 1)
    return text


@pytest.mark.parametrize("chain", sorted(CHAINS))
def test_every_file_over_three_updates(chain: str) -> None:
    name, first, kernels = CHAINS[chain]
    chosen = scenario.parse(text_of(name, first), name)
    kernel = chosen.boot()
    chosen.perform(kernel)
    wanted = meant_by(kernel)
    assert wanted
    profile = kernel.profile
    for number, by in enumerate(kernels, 1):
        image = kernel.kexec()
        with decoded_image.open(image.memory, overrides=overrides(kernel)) as decoded:
            assert [f for f in decoded.findings if f.severity >= Severity.WARNING] == []
        profile = scenario.find_profile(by) if by is not None else profile
        hardware = kernel.machine.spec.hardware
        options = {"reserve_mem": kernel.reserve_mem, "hardware": hardware}
        looked = consume(image.memory, profile, finish=False, **options)
        assert found_by(looked) == wanted
        result = consume(image.memory, profile, **options)
        assert result.outcome is Outcome.TAKEN_OVER, result.reasons[:3]
        assert not result.errors
        check_pages(kernel, result.consumer)
        after = Kernel.after(result.consumer, kernel.machine.spec)
        assert after.live_updates == number
        for session, files in after.take_over().items():
            opened = after.luo.create_session(session)
            for token, file in files.items():
                opened.preserve(file, token)
        assert meant_by(after) == wanted
        kernel = after
    give_everything_back(kernel)


def overrides(kernel: Kernel) -> dict[str, Any]:
    """Forms that one object of each kind does not tell apart."""
    layers = ("pci", "vfio-pci", "iommu", "iommufd", "kvm", "memfd")
    return {layer: kernel.profile[layer] for layer in layers if kernel.profile.has(layer)}


def give_everything_back(kernel: Kernel) -> None:
    """Unpreserve all and close all: every page that was taken over is free again."""
    machine = kernel.machine
    files = [e.file for s in kernel.luo.sessions for e in s.files.values()]
    pools = {order: pool.used for order, pool in kernel.huge_pools.items()}
    for session in list(kernel.luo.sessions):
        session.close()
    assert all(flb.count == 0 for flb in kernel.luo.flbs)
    before = machine.pages_out
    gone = 0
    for file in files:
        if isinstance(file, VfioDevice) and file.iommufd is not None and file.domain is not None:
            file.iommufd.detach(file.device)
    for file in files:
        if isinstance(file, Iommufd):
            for hwpt in list(file.hwpts):
                gone += sum(1 << order for _, order in hwpt.domain.table.tables())
                file.destroy(hwpt)
            for space in list(file.ioas):
                file.destroy_ioas(space)
        elif isinstance(file, Memfd):
            gone += sum(len(e.frames) << e.order for e in file.extents)
            if isinstance(file, HugeMemfd):
                pools[file.pool.order] -= sum(len(e.frames) for e in file.extents)
            file.close()
    assert machine.pages_out == before - gone
    assert set(pools.values()) <= {0}
    assert all(pool.used == 0 for pool in kernel.huge_pools.values())


def test_each_kind_of_file_goes_through_a_chain() -> None:
    """No kind is forgotten: those that scenarios know are those that chains above have."""
    kinds = {
        file.get("type", "memfd")
        for name, first, _ in CHAINS.values()
        for session in tomllib.loads(text_of(name, first)).get("session", [])
        for file in session.get("file", [])
    }
    assert kinds == set(KINDS.values()) == set(scenario.scenario_steps.FILE_TYPES)


def test_some_kinds_only() -> None:
    text = text_of("chain-everything", None)
    image = scenario.parse(text + '\n[[update]]\npreserve = ["memfd", "tmpfs-mount"]\n').run()
    assert list(image.kernel.luo.sessions[0].files) == [0x1, 0x28]
    image = scenario.parse(text + "\n[[update]]\npreserve = false\n").run()
    assert image.kernel.luo.sessions == []


def test_what_was_restored_has_names() -> None:
    """Steps of an update may use files, page tables and address spaces by what they had."""
    step = """
[[update]]
preserve = true
[[update.step]]
do = "unmap"
ioas = "vm/0x30/0x7/ioas"
iova = 0x10000000
size = "2M"
expect = "EBUSY"
[[update.step]]
do = "close"
session = "vm"
[[update.step]]
do = "unmap"
ioas = "vm/0x30/0x7/ioas"
iova = 0x10000000
size = "2M"
[[update.step]]
do = "detach"
device = "0000:00:03.0"
iommufd = "vm/0x30"
[[update.step]]
do = "seek"
file = "vm/0x1"
pos = 5
"""
    image = scenario.parse(text_of("chain-everything", None) + step).run()
    assert image.kernel.luo.sessions == []


@pytest.mark.parametrize(
    ("update", "line", "reason"),
    [
        ('preserve = ["memfds"]', 2, "did you mean 'memfd'?"),
        ("preserve = 5", 2, "is not true or false"),
        ('preserve = ["iommufd"]', 1, "is not preserved in this session"),
    ],
)
def test_mistakes_name_the_update(update: str, line: int, reason: str) -> None:
    text = text_of("chain-everything", None)
    before = len(text.splitlines())
    with pytest.raises(ScenarioError) as caught:
        scenario.parse(f"{text}\n[[update]]\n{update}\n", "s.toml").run()
    assert str(caught.value).startswith(f"s.toml:{before + 1 + line}: update[0]")
    assert reason in str(caught.value)


def test_a_format_without_seals_ends_a_chain_with_an_iommufd() -> None:
    """memfd-v1 gives the file back with F_SEAL_SEAL alone: an iommufd wants more."""
    text = text_of("iommu-v1", None) + "\n[[update]]\n"
    with pytest.raises(ScenarioError, match=r"update\[0\]: .*lacks seals"):
        scenario.parse(text).run()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["linux-7.1", "linux-7.3", "linux-7.3-arm64-4k"])
def test_roots_of_updates_long_ago_are_not_taken_for_the_last_one(name: str, seed: int) -> None:
    """They lie in memory with sessions, even with maps; but they are of updates before."""
    text = text_of(name, None).replace("[machine]", "[machine]\nshuffle = true", 1)
    text += "\n[[update]]\n[[update]]\npreserve = false\n"
    image = scenario.parse(text).run(seed=seed)
    with decoded_image.open(image.memory) as decoded:
        assert decoded.root.address == image.root
        assert decoded.luo is not None
        assert decoded.luo.number == 3
        assert decoded.luo.sessions == []
        assert decoded.findings == []
