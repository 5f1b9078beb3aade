"""Which of three layouts the virtual machine files have: ``kvm_vm_luo_v1`` names them all.

A machine's type (8 bytes), its type and the address of a list of folios (16), or its type and
its memory attributes behind a count (32). The struct has a preserved block of its own, whose
rest is zero: what lies behind ``type`` and what it leads to tells the forms apart, as soon as
there is something. A machine without attributes and without folios is the same bytes in all
three: a tie, and said so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from abi import registry
from abi.kvm import VCPU_STRING, VM_STRING
from abi.registry import Generation
from abi.schema import resolve
from inspector.budget import trial as trial_budget
from inspector.detect import Verdict, decide
from inspector.evidence import Evidence, Plausibility, order
from inspector.findings import Findings
from inspector.memory.base import PageState
from inspector.survey import Survey
from inspector.walk.kvm import KvmVm, walk_vm

#: Guest frames have no more bits than this: 52 bits of guest-physical address, 4 KiB pages.
_GFN_BITS = np.uint64(40)
#: Findings of a trial walk that no kernel's output gives rise to.
_STRUCTURE = {
    "KHO-VML-001": "orders of vmalloc blocks are possible",
    "KHO-VML-002": "flags of vmalloc areas are known",
    "KHO-VML-003": "vmalloc areas have the pages they count",
    "KHO-VML-004": "vmalloc blocks are aligned",
    "KHO-LST-001": "no page is reached twice",
    "KHO-LST-002": "no page is shared",
    "KHO-LST-004": "the chains end",
    "KHO-MEM-003": "addresses are within the machine's",
    "KHO-MEM-004": "pointers are aligned",
    "KHO-KVM-001": "there is as much as is counted",
    "KHO-KVM-002": "a frame has attributes once",
    "KHO-KVM-003": "addresses of folios are some",
}


def detect_vm(
    survey: Survey,
    likely: Plausibility,
    addresses: Sequence[int],
    *,
    vcpus: bool = False,
    override: Generation | None = None,
) -> Verdict:
    """The verdict on all virtual machine files of an image together: one kernel wrote them.

    ``vcpus`` says that the image has vCPU files too, which one of the forms comes with.
    """
    tried: list[tuple[Generation, Evidence, int]] = []
    for generation in registry.named("kvm", VM_STRING):
        evidence = _judge(survey, likely, generation, addresses)
        if vcpus:
            evidence.constraint(
                "vCPUs are files of their own, as in its tree", VCPU_STRING in generation.strings
            )
        # Where the bytes behind a struct are zero a longer one would fit too: the shorter says
        # no more than is there.
        size = resolve(generation.layouts["kvm_luo_ser"], survey.page_size).size
        tried.append((generation, evidence, -size))
    return decide("kvm", order(tried), override)


def _judge(
    survey: Survey, likely: Plausibility, generation: Generation, addresses: Sequence[int]
) -> Evidence:
    evidence = Evidence()
    met: dict[str, str] = {}
    states: list[KvmVm] = []
    left_out = 0
    budget = trial_budget()
    for address in addresses:
        trial = Survey(survey.memory, survey.page_size, Findings(per_code=4), budget=budget)
        state = walk_vm(trial, generation, address, "/trial", likely.preserved)
        left_out += trial.left_out
        if state is not None:
            states.append(state)
            survey.looked += trial.claims
            for finding in trial.findings.items:
                met.setdefault(finding.code, finding.message)
    evidence.constraint(
        "every struct can be read", len(states) == len(addresses), lacking=left_out > 0
    )
    if not states:
        return evidence
    if "KHO-KVM-001" in met:
        met.pop("KHO-KVM-002", None)  # what a wrong count takes for attributes says nothing
    for code, rule in _STRUCTURE.items():
        if code in met:
            evidence.violation(f"{rule}: {met[code]}")
    size = resolve(generation.layouts["kvm_luo_ser"], survey.page_size).size
    rest = [r for s in states if (r := _rest(survey, s.address + size)) is not None]
    evidence.constraint(
        "nothing but zeros behind the struct",
        np.array([not r.strip(b"\0") for r in rest], np.bool_),
    )
    _judge_attributes(evidence, likely, states)
    _judge_folios(evidence, likely, states)
    return evidence


def _rest(survey: Survey, end: int) -> bytes | None:
    """What lies behind the struct in its last page; None if the image lacks it."""
    size = -end % survey.page_size
    if survey.memory.state(end, max(size, 1)) is not PageState.PRESENT:
        return None
    return survey.memory.read(end, size)


def _judge_attributes(evidence: Evidence, likely: Plausibility, states: list[KvmVm]) -> None:
    found = [s.attributes for s in states if s.attributes is not None]
    both = [(a.count != 0) == (a.vmalloc.first != 0) for a in found]
    evidence.constraint("a count comes with an array", np.array(both, np.bool_))
    first = np.array([a.vmalloc.first for a in found if a.vmalloc.first], np.uint64)
    evidence.constraint("the array is in memory", likely.known(first), lambda i: hex(int(first[i])))
    gfn = np.concatenate([a.gfn for a in found]) if found else np.empty(0, np.uint64)
    evidence.constraint(
        "guest frames are within the address width", gfn >> _GFN_BITS == 0,
        lambda i: hex(int(gfn[i])),
    )  # fmt: skip
    if len(gfn):
        evidence.reasons.append(f"{len(gfn)} memory attributes can be read")


def _judge_folios(evidence: Evidence, likely: Plausibility, states: list[KvmVm]) -> None:
    pointers = np.array([s.folios_pa for s in states if s.folios_pa], np.uint64)
    evidence.constraint(
        "the list of folios is in memory", likely.known(pointers), lambda i: hex(int(pointers[i]))
    )
    listed = [s.folios for s in states if s.folios is not None]
    folios = np.concatenate([f.folios for f in listed]) if listed else np.empty(0, np.uint64)
    known = likely.known(folios) if len(folios) else np.empty(0, np.bool_)
    evidence.constraint("its folios are in memory", known, lambda i: hex(int(folios[i])))
