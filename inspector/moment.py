"""When in a live update was an image taken? Before the jump, at it, or after boot."""

from __future__ import annotations

import numpy as np

from inspector.image import Image, MapState, Moment
from inspector.locate import How
from inspector.memory.base import PageState

#: Notes of our own extracts: what the image they were cut from showed.
MOMENT_NOTE = "KHO_MOMENT"
SCRATCH_NOTE = "KHO_SCRATCH"
REASONS_NOTE = "KHO_MOMENT_REASONS"
REASONS_SEPARATOR = " | "


def tell_moment(image: Image) -> None:
    """Set ``image.moment`` and the reasons for it, from the map and the hand-over record."""
    why = image.moment_reasons
    told = image.memory.notes.get(MOMENT_NOTE)
    if told in set(Moment):
        image.moment = Moment(told)
        image.scratch_note = image.memory.notes.get(SCRATCH_NOTE, image.scratch_note)
        reasons = image.memory.notes.get(REASONS_NOTE)
        why += (
            reasons.split(REASONS_SEPARATOR)
            if reasons
            else ["the image is an extract, and says so"]
        )
        return
    handover = image.root.candidate.handover
    how = image.root.candidate.how
    if how in (How.KHO_IN, How.KHO_OUT):
        image.moment = Moment.INCOMING if how is How.KHO_IN else Moment.OUTGOING
        why.append(f"{how} points to the root")
        return
    incomplete = image.map_state is MapState.INCOMPLETE
    whole = "what the dump has of the map is sound" if incomplete else "the map is whole"
    if image.map_state is MapState.LOST or (
        image.map_state is MapState.DAMAGED and handover is not None and image.scratch is not None
    ):
        image.moment = Moment.INCOMING
        why.append(
            "nodes of the preserved-memory map have been reused, as they are once the next"
            " kernel runs"
        )
    elif handover is not None and image.scratch is not None:
        image.moment = Moment.HANDED_OVER
        why.append(f"{handover.how} and the scratch array are in their final place")
        why.append(f"{whole}: the next kernel has not reused its nodes")
    elif handover is not None and image.scratch_note == "not copied yet":
        image.moment = Moment.OUTGOING
        why.append("the hand-over record is there but the scratch array is not copied yet")
    elif _uncopied_destination(image):
        image.moment = Moment.OUTGOING
        image.scratch_note = "not copied yet"
        why.append("nothing points to the root, and pages that wait for segments are still zero")
    elif not image.location.cut and (image.location.boot_params or image.location.device_trees):
        image.moment = Moment.OUTGOING
        why.append("no hand-over record points to this root")
    else:
        image.moment = Moment.HANDED_OVER
        why.append(f"{whole}, but the image holds no hand-over record: it may as well be the"
                   " outgoing side")  # fmt: skip


def _uncopied_destination(image: Image) -> bool:
    """Whether a page is present and zero that is neither preserved nor part of the map.

    In an image cut down to what KHO uses such a page can only be the destination of a
    segment (scratch array, boot_params) that has not been copied yet. An image of all of
    memory tells nothing this way, nor needs it: there the absence of a record is enough.
    """
    if image.preserved is None or image.preserved.missing:
        return False  # what a missing node lists looks as if nobody had preserved it
    page = image.page_size
    known = {int(pa) - int(pa) % page for pa in image.preserved.nodes.tolist()}
    seen = 0
    for start, view in image.memory.distinct():
        seen += len(view)
        if seen > 1 << 30:
            return True
        first = start - start % page
        pages = np.arange(first, start + len(view), page, dtype=np.uint64)
        covered = image.preserved.covers(pages, page)
        for pa in pages[~covered].tolist():
            if pa in known or image.memory.state(pa, page) is not PageState.PRESENT:
                continue
            if not image.memory.read(pa, page).strip(b"\0"):
                return True
    return False
