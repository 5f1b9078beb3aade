"""A kernel that takes over, and the first thing it looks at: the hand-over record and the root.

Every step of early boot appends to the reasons what it does about the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from abi import fdt
from abi.boot import EARLY_MAP_PAGES, early_pages
from abi.kho import KhoGeneration
from inspector.budget import Budget, Cost
from inspector.findings import Findings, Outcome
from inspector.kernel.incoming import libfdt
from inspector.kernel.incoming.restore import Freed, Lost, Marks
from inspector.kernel.incoming.view import Absent, PageFault, View
from inspector.kernel.outcome import Notes, Reasons
from inspector.kernel.profile import KernelProfile
from inspector.locate import Candidate, Handover, How, Location
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap


@dataclass(slots=True)
class Booting:
    """A kernel that takes over: what early boot has found so far."""

    kernel: KernelProfile
    view: View
    location: Location
    reasons: Reasons
    findings: Findings
    notes: Notes = field(default_factory=Notes)
    handover: Handover | None = None
    root: int = 0
    tree: libfdt.Node | None = None
    scratch: list[tuple[int, int]] = field(default_factory=list)
    preserved: PreservedMap | None = None
    marks: Marks = field(default_factory=Marks)
    #: What the kernel does about state it cannot read, where it is not what releases do.
    behaviours: Mapping[str, str] = field(default_factory=dict)
    freed: Freed = field(default_factory=Freed)
    #: Frames that were given back long before what lies in them is read.
    lost: Lost = field(default_factory=Lost)
    #: Whether libfdt reads the root FDT to its end.
    root_ends: bool = True
    #: What files, their lists and the state of devices may cost together.
    budget: Budget = field(default_factory=Budget)

    def survey(self, per_code: int) -> Survey:
        """A survey that takes from the budget, with so many findings of a code."""
        memory, page = self.view.memory, self.view.page_size
        return Survey(memory, page, Findings(per_code=per_code), budget=self.budget)

    def spend(self, cost: Cost, amount: int, address: int) -> None:
        """Take from the budget. Raises Absent if there is less left."""
        if self.budget.room(cost, amount, self.view.memory) < amount:
            why = f"more {cost.what} than an image of this size can have: they are not followed"
            raise Absent(address, why)
        self.budget.spend(cost, amount)

    @property
    def generation(self) -> KhoGeneration:
        """The form of KHO that this kernel reads."""
        found = self.kernel["kho"]
        assert isinstance(found, KhoGeneration)
        return found

    def ignores(self, situation: str) -> bool:
        """Whether the kernel ignores what others panic or fail about."""
        return self.behaviours.get(situation) == "ignore"

    @property
    def x86(self) -> bool:
        """Whether this is surely a PC."""
        how = self.handover.how if self.handover is not None else None
        return how is How.SETUP_DATA or self.view.memory.machine == "x86_64"

    @property
    def running(self) -> bool:
        """Whether the root is that of a kernel which has not handed over."""
        return self.view.memory.kernel_roots.get(self.root) == "out"

    @property
    def handed_off(self) -> bool:
        """Whether the image surely is of the moment of the jump."""
        how = self.handover.how if self.handover is not None else None
        return how is How.SETUP_DATA or self.view.memory.notes.get("KHO_MOMENT") == "handed-over"


def _refuse(
    boot: Booting, message: str, address: int | None, dmesg: str, data: bytes = b""
) -> bool:
    boot.reasons.add(
        Outcome.KHO_REFUSED,
        message + ": the kernel forgets KHO and boots; all that was handed over is lost",
        path="/",
        address=address,
        data=data,
        dmesg=dmesg,
    )
    return False


def read_root(boot: Booting) -> bool:
    """Find, map and check the root FDT. False if the kernel forgets KHO or dies."""
    candidate = _candidate(boot)
    if candidate is None and boot.handover is None:
        boot.reasons.add(Outcome.CANNOT_TELL, "the image holds no KHO root", path="/")
        return False
    if candidate is not None and candidate.how is How.KHO_IN and not candidate.given:
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            "the kernel that runs has prepared nothing for the next one yet, and has taken over"
            " what it was given",
            path="/", address=candidate.address,
        )  # fmt: skip
        return False
    if candidate is not None and candidate.how is How.KHO_OUT:
        boot.notes.append(
            f"what the running kernel has for the next one so far: root {candidate.address:#x}"
        )
    if boot.handover is not None:
        boot.root, size = boot.handover.fdt_address, boot.handover.fdt_size
        if not size or not boot.handover.scratch_size:
            what = "root FDT" if not size else "scratch array"
            return _refuse(
                boot, f"the size of the {what} is handed over as 0", boot.handover.address,
                "disabling KHO revival",
            )  # fmt: skip
        for what, address, length, message in (
            ("root FDT", boot.root, size, "failed to memremap FDT"),
            (
                "scratch array", boot.handover.scratch_address, boot.handover.scratch_size,
                "failed to memremap scratch",
            ),
        ):  # fmt: skip
            if (
                boot.handover.how is How.SETUP_DATA
                and early_pages(address, length) > EARLY_MAP_PAGES
            ):
                return _refuse(
                    boot, f"the size of the {what} is handed over as {length:#x}, more than can"
                    " be mapped early", boot.handover.address, message,
                )  # fmt: skip
    else:
        assert candidate is not None
        boot.root = candidate.address
    try:
        return _compatible(boot, _root_tree(boot))
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "the root FDT is not in the image", path="/", address=lack.address
        )
        return False
    except _Unmapped as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS,
            f"reading the root FDT leads to {fault.address:#x}, behind what is mapped of it",
            path="/", address=fault.address, dmesg="PANIC: early exception",
        )  # fmt: skip
        return False
    except PageFault as fault:
        return _refuse(
            boot, "the root FDT cannot be mapped", fault.address, "failed to memremap FDT"
        )
    except fdt.FdtError as error:
        return _refuse(boot, f"the root FDT is invalid: {error}", boot.root, "is invalid")


def _candidate(boot: Booting) -> Candidate | None:
    """The root that the hand-over record leads to, else the best one found by other means.

    Of a running kernel it is what that kernel has for the next one.
    """
    records = [h for h in boot.location.handovers if h.how in (How.SETUP_DATA, How.CHOSEN)]
    best = boot.location.candidates[0] if boot.location.candidates else None
    if best is not None and not best.given:
        own = (c for c in boot.location.candidates if c.how is How.KHO_OUT)
        best = next(own, best)
    if best is not None and (best.given or best.handover is not None or not records):
        boot.handover = best.handover
        if best.handover is None and not boot.view.memory.kernel_scratch:
            boot.notes.append(
                "no hand-over record leads to the root: scratch is taken to be what it must be"
            )
        return best
    boot.handover = records[0] if records else None
    return None


def _root_tree(boot: Booting) -> libfdt.Node:
    """The root as libfdt reads it, out of the pages that early boot maps of it.

    Raises FdtError, Absent, PageFault.
    """
    view, at = boot.view, boot.root
    size = boot.handover.fdt_size if boot.handover is not None else view.page_size
    end = -(-(at + size) // view.page_size) * view.page_size

    def read(address: int, size: int) -> bytes:
        if address + size > end:
            raise _Unmapped(address)
        return view.read(address, size)

    blob = libfdt.Blob(read, at)
    blob.check_header()
    if blob.total > view.page_size:
        boot.findings.warning(
            "KHO-ROOT-002", f"root FDT has {blob.total} bytes, more than a page",
            path="/", address=at,
        )  # fmt: skip
    # libfdt wants the root node at the start of the structure, and takes no NOP before it.
    return libfdt.Node(blob)


class _Unmapped(PageFault):
    """Early boot reads behind what it mapped."""


def _compatible(boot: Booting, root: libfdt.Node) -> bool:
    boot.tree = root
    wanted = boot.generation.strings[0].encode()
    if wanted not in root.compatible:
        own = root.get(b"compatible") or b""
        said = own.split(b"\0")[0].decode("utf-8", "backslashreplace")
        return _refuse(
            boot, f"the root FDT says {said!r}, this kernel knows {wanted.decode()!r} only",
            boot.root, f"is incompatible with '{wanted.decode()}'", own,
        )  # fmt: skip
    value = root.get(boot.generation.map_property.encode())
    if boot.running and value == bytes(8):
        boot.reasons.add(
            Outcome.CANNOT_TELL,
            "the running kernel makes its map when it hands over: there is none yet",
            path="/preserved", address=boot.root,
        )  # fmt: skip
        return False
    if boot.kernel.map_required and (value is None or len(value) != 8 or not any(value)):
        what = "missing" if value is None else "zero" if len(value) == 8 else "malformed"
        return _refuse(
            boot, f"{boot.generation.map_property} is {what}", boot.root,
            "disabling KHO revival", value or b"",
        )  # fmt: skip
    # Later readers have all of memory mapped.
    whole = libfdt.Blob(boot.view.read, boot.root)
    boot.tree, boot.root_ends = libfdt.Node(whole), whole.ends()
    return True
