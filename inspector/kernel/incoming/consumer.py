"""The kernel that takes over: an image, read and used as one release does.

::

    consumer = boot(memory, profile("linux-7.3"))
    session = consumer.retrieve_session("vm0")
    ram = session.retrieve(0x10)
    session.finish()
    consumer.outcome, consumer.reasons

:func:`consume` does all of that with everything an image hands over. Nothing is raised for what
an image contains; calls that the kernel would refuse raise
:class:`~inspector.kernel.errno.KernelErrno`. What the kernel writes goes into an overlay: the
image itself is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from inspector.findings import Finding, Findings, Outcome
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming import device_files, devices, guest_files, memory_file, revive
from inspector.kernel.incoming import luo as incoming
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.device_files import RestoredIommufd, RestoredVfio
from inspector.kernel.incoming.device_state import Devices
from inspector.kernel.incoming.early import early
from inspector.kernel.incoming.early_scratch import INITRD_SIZE, KERNEL_SIZE
from inspector.kernel.incoming.first_open import open_device
from inspector.kernel.incoming.given_machine import page_size_of, ram_for
from inspector.kernel.incoming.luo import FileEntry, Incoming, SessionEntry
from inspector.kernel.incoming.memory_file import RestoredMemfd
from inspector.kernel.incoming.pages import release
from inspector.kernel.incoming.restore import frames_in
from inspector.kernel.incoming.revive import Clients
from inspector.kernel.incoming.view import Absent, PageFault, View
from inspector.kernel.machine.frames import FrameSet
from inspector.kernel.machine.hardware import Hardware
from inspector.kernel.outcome import Notes, Reason, Reasons
from inspector.kernel.outgoing.clients import ReserveMem
from inspector.kernel.profile import KernelProfile
from inspector.kernel.profile import profile as find_profile
from inspector.locate import locate
from inspector.memory.base import PhysicalMemory
from inspector.memory.sparse import SparseMemory
from inspector.text import plural


class Session:
    """A session whose file descriptor user space holds."""

    def __init__(self, consumer: Consumer, entry: SessionEntry) -> None:
        self._consumer = consumer
        self.entry = entry

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name.decode("utf-8", "surrogateescape")

    @property
    def tokens(self) -> list[int]:
        """The tokens of its files, in the order of the image."""
        return [f.token for f in self.entry.files]

    def retrieve(self, token: int) -> Any:
        """The file with this token. Raises ENOENT; the error of a failed retrieve sticks."""
        if self.entry.finished:
            raise KernelErrno("EINVAL", f"session {self.name!r} is finished")
        found = self.entry.find(token)
        if found is None:
            raise KernelErrno("ENOENT", f"no file {token:#x} in session {self.name!r}")
        return self._consumer.retrieve_file(self.entry, found)

    def finish(self) -> None:
        """Finish all files. Raises EBUSY, with nothing done, if one cannot be finished."""
        self._consumer.finish_session(self.entry)


class Consumer:
    """A booted kernel and what it took over. Made by :func:`boot`."""

    def __init__(self, state: Booting) -> None:
        self.state = state
        self.clients = Clients({})
        self.luo: Incoming | None = None
        #: IOMMU and PCI state; None before LUO is up.
        self.devices: Devices | None = None
        #: What user space has retrieved, in that order.
        self.files: list[Any] = []
        self.booted = False

    # -- what came of it ------------------------------------------------------------------

    @property
    def kernel(self) -> KernelProfile:
        """The kernel that boots."""
        return self.state.kernel

    @property
    def outcome(self) -> Outcome:
        """What the reasons so far add up to."""
        return self.state.reasons.outcome

    @property
    def reasons(self) -> list[Reason]:
        """What decides the outcome, the worst first."""
        return self.state.reasons.ranked

    @property
    def findings(self) -> list[Finding]:
        """Anomalies that decide nothing."""
        return self.state.findings.items

    @property
    def notes(self) -> Notes:
        """What is worth knowing: assumptions, what a format cannot carry, what is ignored."""
        return self.state.notes

    @property
    def objects(self) -> dict[str, Any]:
        """What was restored, by path."""
        found: dict[str, Any] = {
            f"/memblock/{name}": where for name, where in self.clients.reserve_mem.items()
        }
        for session in self.luo.sessions if self.luo is not None else ():
            found[session.path] = session
            for file in session.files:
                if file.file is not None:
                    found[file.path] = file.file
        return found

    # -- what the next update starts from ---------------------------------------------------

    @property
    def memory(self) -> SparseMemory:
        """The machine's memory, with what this kernel wrote."""
        return self.state.view.memory

    @property
    def page_size(self) -> int:
        """This kernel's page size."""
        return self.state.view.page_size

    @property
    def scratch(self) -> list[tuple[int, int]]:
        """Scratch areas (address, size)."""
        return self.state.scratch

    @property
    def root(self) -> int:
        """Physical address of the root FDT."""
        return self.state.root

    @property
    def liveupdate_num(self) -> int:
        """How many live updates there were, this one included."""
        return self.luo.number if self.luo is not None else 0

    @property
    def kexec_count(self) -> int:
        """How many kexecs there were, this one included."""
        return self.clients.kexec_count or 0

    @cached_property
    def _reserved(self) -> FrameSet:
        assert self.state.preserved is not None
        return frames_in(self.state.preserved)

    @property
    def retained(self) -> FrameSet:
        """Frames that were handed over and are still in use."""
        found = FrameSet()
        if self.state.preserved is None:
            return found
        found.add(self._reserved.frames())
        freed = self.state.freed.frames()
        found.discard(freed[self._reserved.contains(freed)])
        return found

    # -- user space -------------------------------------------------------------------------

    def open(self) -> Incoming:
        """Open the control device. Raises EOPNOTSUPP, EIO."""
        if not self.booted:
            raise KernelErrno("ENODEV", f"{self.kernel} did not come up")
        if self.luo is None:
            if not self.kernel.has("luo"):
                raise KernelErrno("ENOENT", f"{self.kernel} has no control device")
            raise KernelErrno("ENOENT", "nothing was handed over")
        first = not self.luo.opened
        open_device(self.state, self.luo)
        if first:
            self._free_lists(self.luo)
        return self.luo

    def _free_lists(self, luo: Incoming) -> None:
        for address, _ in luo.pages:
            if not release(self.state, address):
                self.state.reasons.add(
                    Outcome.TAKEN_OVER_WITH_WARNINGS,
                    f"the page {address:#x} of LUO's lists begins no preserved block, or was freed"
                    " before: it cannot be restored",
                    path="/LUO", address=address, dmesg="kho_restore_page",
                )  # fmt: skip
        self.state.lost.see(self.state.freed)

    def retrieve_session(self, name: str | bytes) -> Session:
        """A session by name. Raises ENOENT, EINVAL (retrieved before), and what opening raises."""
        raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        luo = self.open()
        for session in luo.sessions:
            if session.name == raw:
                if session.retrieved:
                    raise KernelErrno("EINVAL", "the session is retrieved already")
                session.retrieved = True
                return Session(self, session)
        text = raw.decode("utf-8", "backslashreplace")
        raise KernelErrno(
            "ENOENT", f"no session {text!r}; 'kho dump IMAGE /LUO/sessions' lists them"
        )

    def retrieve_file(self, session: SessionEntry, file: FileEntry) -> Any:
        """What ``Session.retrieve`` does. Raises KernelErrno."""
        if file.error is not None:
            raise file.error
        if file.file is None:
            try:
                file.file = self._retrieve(session, file)
            except KernelErrno as error:
                file.error = error
                self.file_error(file, Outcome.FILE_ERROR, str(error), error.name)
                raise
            except Absent as lack:
                file.error = KernelErrno("EIO", str(lack))
                self.file_error(file, Outcome.CANNOT_TELL, file.error.reason, address=lack.address)
                raise file.error from None
            except PageFault as fault:
                file.error = KernelErrno("EIO", f"a page fault at {fault.address:#x}")
                self.file_error(
                    file, Outcome.BOOT_FAILS,
                    f"retrieving reads {fault.address:#x}, which is not there: a page fault",
                    address=fault.address,
                )  # fmt: skip
                raise file.error from None
            self.files.append(file.file)
        return file.file

    def _retrieve(self, session: SessionEntry, file: FileEntry) -> Any:
        if file.layer == "memfd":
            return memory_file.retrieve(self.state, file)
        if self.devices is not None and file.layer == "iommufd":
            return device_files.retrieve_iommufd(self.devices, file)
        if self.devices is not None and file.layer == "vfio-pci":
            return device_files.retrieve_vfio(self.devices, session, file)
        if self.devices is not None and file.layer in guest_files.LAYERS:
            return guest_files.retrieve(self.devices, session, file)
        raise KernelErrno("EOPNOTSUPP", f"files of handler {file.compatible!r} are not modelled")

    def file_error(
        self,
        file: FileEntry,
        outcome: Outcome,
        message: str,
        errno: str = "",
        address: int | None = None,
    ) -> None:
        """Record what goes wrong with a file."""
        shown = self.state.view.present(file.address, 64)
        self.state.reasons.add(
            outcome,
            message,
            path=file.path,
            address=file.data if address is None else address,
            data=self.state.view.read(file.address, 64) if shown else b"",
            errno=errno,
        )

    def finish_session(self, session: SessionEntry) -> None:
        """What ``Session.finish`` does. Raises EBUSY, EINVAL."""
        if session.finished:
            raise KernelErrno("EINVAL", "the session is finished already")
        for file in session.files:
            if not self._can_finish(session, file):
                raise KernelErrno("EBUSY", f"{file.path} cannot be finished yet")
        for file in reversed(session.files):
            try:
                self._finish(session, file)
            except Absent as lack:
                self.file_error(file, Outcome.CANNOT_TELL, str(lack), address=lack.address)
            except PageFault as fault:
                self.file_error(
                    file, Outcome.BOOT_FAILS, f"finishing reads {fault.address:#x}: a page fault",
                    address=fault.address,
                )  # fmt: skip
            file.finished = True
        session.finished = True

    def _can_finish(self, session: SessionEntry, file: FileEntry) -> bool:
        if file.layer == "iommufd":
            return isinstance(file.file, RestoredIommufd) and file.file.can_finish()
        if file.layer == "vfio-pci":
            return isinstance(file.file, RestoredVfio) and file.file.opened
        return True

    def _finish(self, session: SessionEntry, file: FileEntry) -> None:
        if file.layer == "memfd" or file.layer in guest_files.LAYERS:
            self._throw_away(session, file)
            if self.devices is not None and file.layer == "hugetlb":
                self.devices.finish_file(file.layer)
        elif self.devices is not None and file.layer in ("iommufd", "vfio-pci"):
            if isinstance(file.file, RestoredIommufd):
                for hwpt in file.file.hwpts.values():
                    self.devices.drop_domain(hwpt.domain)
                self.state.freed.add_one(file.data >> self.state.view.page_shift, file.file.order)
            self.devices.finish_file(file.layer)

    def _throw_away(self, session: SessionEntry, file: FileEntry) -> None:
        """A file that nobody has retrieved goes: its memory is freed."""
        if file.file is not None or file.error is not None:
            return
        try:
            found = self._retrieve(session, file)
        except KernelErrno as error:
            self.state.reasons.add(
                Outcome.FILE_ERROR, f"discarding the file fails: {error}", path=file.path,
                address=file.data, errno=error.name,
            )  # fmt: skip
            return
        guest_files.throw_away(self.state, found)


def boot(
    memory: PhysicalMemory,
    kernel: KernelProfile | str,
    *,
    root: int | None = None,
    reserve_mem: Sequence[ReserveMem] | None = None,
    hardware: Hardware | None = None,
    kernel_size: int = KERNEL_SIZE,
    initrd_size: int = INITRD_SIZE,
    page_size: int | None = None,
    behaviours: Mapping[str, str] | None = None,
) -> Consumer:
    """Boot ``kernel`` on an image, up to the moment when user space runs.

    ``root`` is the address of the root FDT where nothing leads to it; ``reserve_mem`` what the
    new command line asks for (None: the same as before); ``page_size`` the new kernel's (None:
    that of the kernel that wrote the image). ``kernel_size`` and ``initrd_size`` in bytes
    decide whether scratch is large enough; 0 for a kernel that lies elsewhere. ``behaviours``
    are those of :mod:`inspector.kernel.profile_file`.

    Raises UsageError for a root that is none, never for what the image holds otherwise.
    """
    if isinstance(kernel, str):
        kernel = find_profile(kernel)
    location = locate(memory, root)
    page_size = page_size or page_size_of(memory, location)
    view = View(SparseMemory.over(memory, page_size), page_size, ram_for(memory, location))
    state = Booting(kernel, view, location, Reasons(str(kernel)), Findings())
    state.behaviours = behaviours or {}
    if not kernel.measured:
        state.notes.append(f"linux-{kernel.release} is modelled, no real one was measured")
    consumer = Consumer(state)
    if not early(state, kernel_size, initrd_size):
        return consumer
    consumer.clients = revive.revive(state, reserve_mem)
    consumer.luo = incoming.start(state)
    if consumer.luo is not None:
        consumer.devices = devices.start(state, consumer.luo, hardware)
    consumer.booted = state.reasons.outcome is not Outcome.BOOT_FAILS
    return consumer


@dataclass(slots=True)
class Result:
    """What :func:`consume` made of an image."""

    consumer: Consumer
    finished: bool = False
    errors: dict[str, KernelErrno] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The overall outcome."""
        return self.consumer.outcome

    @property
    def reasons(self) -> list[Reason]:
        """What decides it."""
        return self.consumer.reasons

    @property
    def notes(self) -> list[str]:
        """What is worth knowing besides."""
        return list(self.consumer.notes)

    @property
    def status(self) -> int:
        """Exit status: 0, 1 warnings, 4 incompatible, 16 cannot tell."""
        return self.consumer.state.reasons.status

    def files(self) -> Iterator[FileEntry]:
        """Every file of every session, retrieved or not."""
        if self.consumer.luo is not None:
            for _, file in self.consumer.luo.files():
                yield file

    def memfds(self) -> Iterator[RestoredMemfd]:
        """The memory files that were restored."""
        for file in self.files():
            if isinstance(file.file, RestoredMemfd):
                yield file.file


def consume(
    memory: PhysicalMemory, kernel: KernelProfile | str, *, finish: bool = True, **options: Any
) -> Result:
    """Boot, retrieve every session and file, and finish. ``options`` are those of :func:`boot`."""
    consumer = boot(memory, kernel, **options)
    result = Result(consumer)
    if not consumer.booted or consumer.luo is None:
        return result
    try:
        luo = consumer.open()
    except KernelErrno as error:
        result.errors["/LUO"] = error
        return result
    done = []
    for entry in luo.sessions:
        entry.retrieved = True
        session = Session(consumer, entry)
        done.append(session)
        for file in entry.files:
            try:
                consumer.retrieve_file(entry, file)
            except KernelErrno as error:
                result.errors[file.path] = error
        use_devices(result, entry)
    for session in reversed(done) if finish else ():
        try:
            session.finish()
        except KernelErrno as error:
            result.errors[session.entry.path] = error
    result.finished = finish
    _note_seals(consumer)
    return result


def use_devices(result: Result, session: SessionEntry) -> None:
    """What a virtual machine monitor does: claim every HWPT, open and move every device."""
    for file in session.files:
        if isinstance(file.file, RestoredIommufd):
            for token in file.file.hwpts:
                try:
                    file.file.restore_hwpt(token)
                except KernelErrno as error:
                    result.errors[f"{file.path}/hwpts/{token:#x}"] = error
                    result.consumer.file_error(file, Outcome.FILE_ERROR, str(error), error.name)
    for file in session.files:
        if isinstance(file.file, RestoredVfio):
            file.file.open()
            try:
                file.file.replace()
            except KernelErrno as error:
                result.errors[file.path] = error
                result.consumer.file_error(file, Outcome.FILE_ERROR, str(error), error.name)


def _note_seals(consumer: Consumer) -> None:
    memfds = [f for f in consumer.files if isinstance(f, RestoredMemfd)]
    if memfds and not any(f.seals_known for f in memfds):
        consumer.notes.append(
            "the format of memory files carries no seals: each file has F_SEAL_SEAL alone now"
        )
    widened = [f for f in memfds if f.seals_known and f.seals_now != f.seals]
    if widened:
        consumer.notes.append(
            f"F_SEAL_EXEC also seals against writing when it is set again, for"
            f" {plural(len(widened), 'file')} such as {widened[0].path}:"
            f" {widened[0].seals:#x} becomes {widened[0].seals_now:#x}"
        )
