"""LUO: sessions, files, FLBs; and the small clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from abi import registry
from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.walk.luo import Flb

#: The self test attaches its FLBs to every handler.
TEST_FLB = b"liveupdate-test-flb-"


def _numbers(context: Context) -> None:
    image = context.image
    if image.luo is None or image.luo.number is None:
        if image.lost:
            context.undecidable("the live update number is lost")
        return
    meta = image.kexec_metadata
    if image.luo.number < 1:
        context.report("the live update number is 0", path="/LUO", address=image.luo.address)
    elif meta is not None and meta.kexec_count is not None and meta.kexec_count < image.luo.number:
        context.report(
            f"live update number {image.luo.number} but only {meta.kexec_count} kexecs",
            path="/LUO", address=image.luo.address,
        )  # fmt: skip


def _data(context: Context) -> None:
    luo = context.image.luo
    for _, file in luo.files() if luo is not None else ():
        if file.data == 0:
            context.report("its data is 0", path=file.path, address=file.address + 48)


def _flb_pages(context: Context) -> None:
    """FLB header: one page, and a count within it."""
    image = context.image
    if image.luo is None or not image.luo.flbs_address:
        return
    head = image.survey.read(image.luo.flbs_address, 16, "/LUO/flbs")
    if head is None:
        context.undecidable("the FLB page is not in the image")
    elif int.from_bytes(head[:8], "little") != 1:
        context.report(
            f"the FLB array has {int.from_bytes(head[:8], 'little')} pages, not 1",
            path="/LUO/flbs", address=image.luo.flbs_address,
        )  # fmt: skip


def _users(context: Context) -> Iterator[tuple[Flb, int]]:
    """FLBs whose users are known, and how many files need each.

    IOMMU counts iommufd files, PCI vfio files, HugeTLB huge memfds, the self test all.
    """
    luo = context.image.luo
    if luo is None:
        return
    handlers = Counter(f.compatible.partition(b"-")[0] for _, f in luo.files())
    for flb in luo.flbs:
        if flb.name.startswith(TEST_FLB):
            yield flb, sum(handlers.values())
        for name, handler in ((b"iommu", b"iommufd"), (b"pci", b"vfio"), (b"hugetlb", b"huge")):
            if flb.name.startswith(name):
                yield flb, handlers[handler]


def _flb_users(context: Context) -> None:
    """Never too few users."""
    for flb, users in _users(context):
        if flb.count < users:
            context.report(
                f"counts {flb.count} users, {users} files depend on it",
                path=flb.path, address=flb.address + 56,
            )  # fmt: skip


def _flb_unused(context: Context) -> None:
    """Nor too many: up to 7.1 files alone use an FLB."""
    luo = context.image.luo
    if luo is None or not luo.flbs or luo.generation.root != "fdt":
        return
    if not context.all_files():
        return
    for flb, users in _users(context):
        if flb.count > users:
            context.report(
                f"counts {flb.count} users, {users} files depend on it",
                path=flb.path, address=flb.address + 56,
            )  # fmt: skip


def _handlers(context: Context) -> None:
    """A handler string that nobody ever registered."""
    luo = context.image.luo
    if luo is None:
        return
    known = {string for g in registry.every() for string in g.strings}
    for _, file in luo.files():
        if file.compatible.decode("utf-8", "replace") not in known:
            context.report(
                f"handler {file.compatible!r} is unknown", path=file.path, address=file.address
            )


RULES = (
    Rule(
        "KHO-LUO-001", ERROR, "LUO's device tree does not parse, or breaks off.",
        "LUO panics at boot unless what it looks for lies before the damage.",
    ),
    Rule(
        "KHO-LUO-002", ERROR, "A node or property of LUO's device tree is missing, too short or 0.",
        "-EINVAL, and LUO panics at boot; sessions at address 0 are read from there.",
    ),
    Rule(
        "KHO-LUO-003", ERROR, "LUO's blob is shorter than its struct.",
        'Panic at boot: "The incoming tree failed to initialize properly" (7.2 on).',
    ),
    Rule(
        "KHO-LUO-004", ERROR, "A session has files but no count, or a count but no files.",
        "Files without a count: -EINVAL; every open of /dev/liveupdate fails. A count without"
        " files: a warning, and the session has none (7.3.4).",
    ),
    Rule(
        "KHO-LUO-005", ERROR, "A session's blocks hold another number of files than it counts.",
        "-EINVAL; every open of /dev/liveupdate fails.",
    ),
    Rule(
        "KHO-LUO-006", ERROR, "Two sessions have the same name.",
        "-EEXIST; every open of /dev/liveupdate fails.",
    ),
    Rule(
        "KHO-LUO-007", ERROR, "Two files of a session have the same token.",
        "Nothing at first: the first of them is found each time, the second never (7.3.4).",
    ),
    Rule(
        "KHO-LUO-008", ERROR, "A name is not terminated.",
        "A session's is cut; a handler's matches none: -ENOENT, and every open of /dev/liveupdate"
        " fails (7.3.4).",
    ),
    Rule(
        "KHO-LUO-009", ERROR, "A name is empty.",
        "A session without one can be asked for by nobody; a handler without one: -ENOENT, and"
        " every open of /dev/liveupdate fails (7.3.4).",
    ),
    Rule(
        "KHO-LUO-010", ERROR, "Two FLB entries have the same name.",
        "The first is used; the second is never restored.",
    ),
    Rule("KHO-LUO-011", WARNING, "An FLB counts no users.", "It is finished at once, or leaks."),
    Rule(
        "KHO-LUO-012", ERROR, "LUO names a format that no known kernel writes.",
        "A kernel that does not know it panics at boot: devices may still be doing DMA.",
    ),
    Rule(
        "KHO-LUO-013", WARNING, "LUO's structure is gone and no session was found.",
        "Normal once user space has finished every session.",
    ),
    Rule(
        "KHO-LUO-014", INFO, "Nothing here decodes the files of a handler.",
        "A kernel without that handler: every open of /dev/liveupdate fails.",
    ),
    Rule(
        "KHO-LUO-015", WARNING, "The live update number does not fit the kexec count.",
        "Nothing; user space is told a wrong number.", test=_numbers,
    ),
    Rule(
        "KHO-LUO-016", ERROR, "A file has no data.",
        "Its handler cannot restore it: an error for that file.", test=_data,
    ),
    Rule(
        "KHO-LUO-017", WARNING, "The FLB array does not have one page.",
        "It looks at one page, whatever the number says (7.3.4).", test=_flb_pages,
    ),
    Rule(
        "KHO-LUO-018", ERROR, "An FLB counts fewer users than there are files that need it.",
        "It is freed while still in use.", test=_flb_users,
    ),
    Rule(
        "KHO-LUO-019", ERROR, "A file's handler is unknown to every kernel.",
        "-ENOENT; every open of /dev/liveupdate fails (7.3).", test=_handlers,
    ),
    Rule(
        "KHO-LUO-020", WARNING, "An FLB counts more users than there are files that need it.",
        "It is never finished: what it keeps is lost until the next cold boot (up to 7.1).",
        test=_flb_unused,
    ),
    Rule(
        "KHO-RSV-001", ERROR, "reserve_mem's blob or region has the wrong compatible string.",
        "The region is not revived; a fresh one is allocated.",
    ),
    Rule(
        "KHO-RSV-002", ERROR, "A reserve_mem region has no usable start or size.",
        "The region is not revived; a fresh one is allocated.",
    ),
    Rule(
        "KHO-META-001", WARNING, "kexec-metadata is too short.", "Ignored with a warning (7.1 on).",
    ),
    Rule(
        "KHO-META-002", WARNING, "kexec-metadata has an unknown version.",
        "Ignored with a warning (7.1 on).",
    ),
    Rule(
        "KHO-TEST-001", WARNING, "kho_test's magic is wrong.", "The self test fails.",
    ),
)  # fmt: skip
