"""Virtual machines, guest memory, huge pages and mounts: what development handlers keep.

None of these handlers is in a release. Beside this module are the decoding (:mod:`.decode`)
with the detection of the KVM layout (:mod:`.detect_kvm`), and how people and programs see it
(:mod:`.view`). All of it is imported where an image has such state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from inspector.walk.guest_memfd import GuestMemfd
from inspector.walk.hugetlb import HugeMemfd, Hugetlb
from inspector.walk.kvm import KvmVcpu, KvmVm
from inspector.walk.luo import File, Session

if TYPE_CHECKING:
    from inspector.image import Image

State = TypeVar("State")


def files_with(image: Image, kind: type[State]) -> Iterator[tuple[Session, File, State]]:
    """Every file whose state is of a kind, with its session."""
    if image.luo is not None:
        for session, file in image.luo.files():
            if isinstance(file.state, kind):
                yield session, file, file.state


def vms(image: Image) -> Iterator[tuple[Session, File, KvmVm]]:
    """Every virtual machine."""
    return files_with(image, KvmVm)


def vcpus(image: Image) -> Iterator[tuple[Session, File, KvmVcpu]]:
    """Every vCPU."""
    return files_with(image, KvmVcpu)


def guest_memfds(image: Image) -> Iterator[tuple[Session, File, GuestMemfd]]:
    """Every guest memory file."""
    return files_with(image, GuestMemfd)


def huge_memfds(image: Image) -> Iterator[tuple[Session, File, HugeMemfd]]:
    """Every memory file of huge pages."""
    return files_with(image, HugeMemfd)


def hugetlb(image: Image) -> Hugetlb | None:
    """The pools of huge pages."""
    flbs = image.luo.flbs if image.luo is not None else ()
    return next((f.state for f in flbs if isinstance(f.state, Hugetlb)), None)
