"""Decode virtual machines, vCPUs, guest memory, huge pages and mounts, and join them up.

Which memory and which vCPUs belong to a virtual machine is said by tokens: those of the
session's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from abi.hugetlb import FILE_STRING as HUGE_MEMFD
from abi.kvm import VCPU_STRING, VM_STRING
from abi.registry import Generation
from inspector import detect
from inspector.detect import note
from inspector.evidence import Plausibility
from inspector.handlers import guest_memfds, vcpus
from inspector.handlers.detect_kvm import detect_vm
from inspector.walk.files import flb_decoder
from inspector.walk.guest_memfd import GuestMemfd, walk_guest_memfd
from inspector.walk.hugetlb import walk_huge_memfd, walk_hugetlb
from inspector.walk.kvm import KvmVcpu, KvmVm, walk_vcpu, walk_vm
from inspector.walk.luo import File, Flb, Session
from inspector.walk.tmpfs import walk_tmpfs_mount

if TYPE_CHECKING:
    from inspector.image import Image

Overrides = Mapping[str, Generation]
#: Machines that are looked at, at most twice this, to tell their layout.
_SAMPLE = 512


def decode(image: Image, overrides: Overrides) -> None:
    """Decode the state of every file and FLB of these handlers."""
    if image.luo is None:
        return
    for flb in image.luo.flbs:
        if flb.data and flb_decoder(flb.name) == __name__:
            _hugetlb(image, flb, overrides)
    chosen: dict[bytes, Generation | None] = {}
    vm_files = [f for _, f in image.luo.files() if f.compatible == VM_STRING.encode() and f.data]
    has_vcpus = any(f.compatible == VCPU_STRING.encode() for _, f in image.luo.files())
    for _, file in image.luo.files():
        known = _FILES.get(_text(file.compatible))
        if known is None or not file.data:
            continue
        layer, struct, _ = known
        if file.compatible not in chosen:
            if file.compatible == VM_STRING.encode():
                verdict = detect_vm(
                    image.survey,
                    Plausibility(image.memory, image.page_size, image.preserved),
                    [f.data for f in vm_files[:: len(vm_files) // _SAMPLE + 1]],
                    vcpus=has_vcpus,
                    override=overrides.get(layer),
                )
            else:
                verdict = detect.by_string(
                    layer, file.compatible, _applicable(overrides, layer, struct)
                )
            # The machines' form says more than that there are vCPUs.
            if file.compatible != VCPU_STRING.encode() or not vm_files:
                note(image, layer, verdict)
            chosen[file.compatible] = verdict.generation
        generation = chosen[file.compatible]
        if generation is not None:
            file.state = _walk(image, generation, file)
    _join(image)


def _text(string: bytes) -> str:
    return string.decode("utf-8", "replace")


def _applicable(overrides: Overrides, layer: str, struct: str) -> Generation | None:
    """The generation asked for, unless it has no such struct: a layer may have several kinds."""
    wanted = overrides.get(layer)
    return wanted if wanted is not None and struct in wanted.layouts else None


def _walk(image: Image, generation: Generation, file: File) -> Any:
    return _FILES[_text(file.compatible)][2](image, generation, file)


#: Handler string -> layer, root struct, walker.
_FILES: dict[str, tuple[str, str, Any]] = {
    "guest_memfd_luo_v1": (
        "guest-memfd",
        "guest_memfd_luo_ser",
        lambda i, g, f: walk_guest_memfd(i.survey, g, f.data, f.path, i.preserved),
    ),
    HUGE_MEMFD: (
        "hugetlb",
        "hugemfd_ser",
        lambda i, g, f: walk_huge_memfd(i.survey, g, f.data, f.path, i.preserved),
    ),
    VM_STRING: (
        "kvm",
        "kvm_luo_ser",
        lambda i, g, f: walk_vm(i.survey, g, f.data, f.path, i.preserved),
    ),
    VCPU_STRING: (
        "kvm",
        "kvm_vcpu_ser",
        lambda i, g, f: walk_vcpu(i.survey, g, f.data, f.path, i.preserved),
    ),
    "tmpfs-mnt-v1": (
        "tmpfs",
        "tmpfs_luo_mnt_ser",
        lambda i, g, f: walk_tmpfs_mount(i.survey, g, f.data, f.path),
    ),
}


def _hugetlb(image: Image, flb: Flb, overrides: Overrides) -> None:
    verdict = detect.by_string(
        "hugetlb", flb.name, _applicable(overrides, "hugetlb", "hugetlb_ser")
    )
    note(image, "hugetlb", verdict)
    if verdict.generation is not None:
        flb.state = walk_hugetlb(image.survey, verdict.generation, flb.data, flb.path)


# -- tokens -------------------------------------------------------------------------------------


def _join(image: Image) -> None:
    """From tokens to machines, and back. Findings ``KHO-KVM-020`` where there is none."""
    by_token: dict[str, dict[int, File]] = {}
    for pairs in (guest_memfds(image), vcpus(image)):
        for session, file, state in pairs:
            if session.path not in by_token:
                by_token[session.path] = _tokens(session)
            _link(image, session, by_token[session.path], file, state)


def _tokens(session: Session) -> dict[int, File]:
    found: dict[int, File] = {}
    for file in session.files:
        found.setdefault(file.token, file)
    return found


def _link(
    image: Image,
    session: Session,
    by_token: dict[int, File],
    file: File,
    state: GuestMemfd | KvmVcpu,
) -> None:
    owner = by_token.get(state.vm_token)
    if owner is not None and isinstance(owner.state, KvmVm):
        state.vm = owner.path
        (owner.state.memory if isinstance(state, GuestMemfd) else owner.state.vcpus).append(
            file.path
        )
        return
    if owner is not None and owner.compatible == VM_STRING.encode():
        state.vm = owner.path  # a machine whose struct cannot be read
        return
    if owner is None and not session.complete:
        return  # it may be among the files that the image lacks
    what = "no file" if owner is None else f"{owner.path}, which is no virtual machine"
    image.survey.findings.error(
        "KHO-KVM-020",
        f"vm_token {state.vm_token:#x} names {what}{'' if owner else ' of the session'}",
        path=file.path,
        address=state.address + (24 if isinstance(state, GuestMemfd) else 8),
    )
