"""IOMMU, PCI, iommufd and VFIO state taken over: real captures, broken images, user space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inspector import memory
from inspector.findings import Outcome
from inspector.kernel import faults, scenario
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.consumer import Consumer, Session, boot, consume
from inspector.kernel.incoming.device_files import RestoredIommufd, RestoredVfio

CORPUS = Path(__file__).parents[2] / "corpus"
KERNEL = "linux-7.3+iommu-vw"


def made(name: str = "iommufd", *broken: str) -> Any:
    image = scenario.load(name).run()
    for fault in broken:
        faults.inject(image, fault)
    return image


def test_what_the_consumer_writes_is_what_a_real_one_wrote() -> None:
    """The same memory before and after the boot of a real kernel."""
    before = memory.open(CORPUS / "iommu-vw-legacy-handoff.elf.zst")
    after = memory.open(CORPUS / "iommu-vw-legacy-incoming.elf.zst")
    with before, after:
        consumer = boot(before, KERNEL)
        assert consumer.devices is not None
        state = consumer.devices.iommu
        assert state is not None
        restored = 0
        for objects in (state.units, state.domains, state.devices):
            struct = objects.kind.objects
            pointer = next((f for f in struct.fields if f.name == "restored_domain"), None)
            for address in objects.addresses.tolist():
                ours = bytearray(consumer.memory.read(address, struct.size))
                real = bytearray(after.read(address, struct.size))
                if pointer is not None:
                    at = slice(pointer.offset, pointer.offset + 8)
                    assert any(ours[at]) == any(real[at])
                    restored += any(real[at])
                    ours[at] = real[at] = bytes(8)
                assert ours == real, (objects.kind.name, hex(address))
        assert restored == len(consumer.devices.domains) > 0
        assert before.read(state.address, 32) == consumer.memory.read(state.address, 32)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("iommu-version", Outcome.BOOT_FAILS),
        ("iommu-array-zero", Outcome.BOOT_FAILS),
        ("iommu-array-not-preserved", Outcome.BOOT_FAILS),
        ("top-table-not-preserved", Outcome.BOOT_FAILS),
        ("table-not-preserved", Outcome.BOOT_FAILS),
        ("device-domain-unpreserved", Outcome.BOOT_FAILS),
        ("unit-token-unknown", Outcome.FILE_ERROR),
        ("did-zero", Outcome.TAKEN_OVER),
    ],
)
@pytest.mark.parametrize("machine_known", [False, True])
def test_broken_images(fault: str, outcome: Outcome, machine_known: bool) -> None:
    image = made("iommufd", fault)
    hardware = image.kernel.machine.spec.hardware if machine_known else None
    result = consume(image.memory, KERNEL, hardware=hardware)
    assert result.outcome is outcome, result.reasons[:3]


def test_an_unknown_unit_fails_each_of_its_devices() -> None:
    result = consume(made("iommufd", "unit-token-unknown").memory, KERNEL)
    named = {r.message.split()[0] for r in result.reasons if r.path.startswith("/LUO/flbs")}
    assert {"0000:00:03.0", "0000:00:04.0", "0000:00:05.0", "0000:00:10.0"} <= named
    assert Outcome.TAKEN_OVER_WITH_WARNINGS in {r.outcome for r in result.reasons}


SCENARIOS = [
    name for name, title in scenario.shipped().items()
    if name in ("iommufd", "iommu-v1", "iommu-v2", "iommu-rfc-v2", "iommu-v3-scalable",
                "smmuv3", "unpreserve", "vfio-rfc-v1")
]  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_form_is_taken_over_by_its_own_kernel(name: str) -> None:
    image = made(name)
    for hardware in (None, image.kernel.machine.spec.hardware):
        result = consume(image.memory, image.kernel.profile, hardware=hardware)
        assert result.outcome is Outcome.TAKEN_OVER, result.reasons[:3]
        assert result.finished
        assert not result.errors


def retrieved(consumer: Consumer) -> tuple[Session, RestoredIommufd, list[RestoredVfio]]:
    session = consumer.retrieve_session("vm-a")
    files = [session.retrieve(token) for token in session.tokens]
    iommufd = next(f for f in files if isinstance(f, RestoredIommufd))
    return session, iommufd, [f for f in files if isinstance(f, RestoredVfio)]


def failing(call: Any, *arguments: Any) -> str:
    with pytest.raises(KernelErrno) as error:
        call(*arguments)
    return error.value.name


def test_a_session_finishes_when_all_is_claimed_opened_and_moved() -> None:
    consumer = boot(made().memory, KERNEL)
    session, iommufd, devices = retrieved(consumer)
    assert failing(session.finish) == "EBUSY"
    assert failing(iommufd.restore_hwpt, 5) == "ENOENT"
    for token in iommufd.hwpts:
        hwpt = iommufd.restore_hwpt(token)
        assert consumer.memory.read(hwpt.reclaimed_at, 1) == b"\1"
        assert failing(iommufd.restore_hwpt, token) == "EEXIST"
    assert failing(session.finish) == "EBUSY"
    for device in devices:
        device.open()
    assert failing(session.finish) == "EBUSY"
    for device in devices:
        device.replace()
    session.finish()
    assert failing(session.finish) == "EINVAL"


def test_a_device_that_is_not_opened_keeps_the_session_busy() -> None:
    consumer = boot(made().memory, KERNEL)
    session, iommufd, devices = retrieved(consumer)
    for token in iommufd.hwpts:
        iommufd.restore_hwpt(token)
    for device in devices:
        device.replace()
    assert failing(session.finish) == "EBUSY"


def test_without_iommu_state_no_hwpt_comes_back() -> None:
    image = made()
    result = consume(image.memory, f"{KERNEL}+iommu=iommu-v3-2026-06")
    assert result.outcome is Outcome.FILE_ERROR
    assert {e.name for e in result.errors.values()} >= {"ENOTTY"}


def test_dids_are_reserved() -> None:
    consumer = boot(made().memory, KERNEL)
    assert consumer.devices is not None
    assert sorted(d for dids in consumer.devices.dids.values() for d in dids) == [3, 4, 5]
    assert len(consumer.devices.domains) == 3
    assert len(consumer.devices.devices) == 4
