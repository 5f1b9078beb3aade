"""What differs between two images: objects by identity, large parts by columns.

Documents are compared object by object (``objects``), preserved blocks and folios (``columns``)
and mappings (``mappings``) as columns, contents of files (``contents``) a piece at a time. Where
the second image is of the consumer, differences that a consumer always makes carry the reason.
"""

from __future__ import annotations

from inspector.diff import columns, mappings
from inspector.diff.changes import Change, Diff, Kind
from inspector.diff.contents import contents as compare_contents
from inspector.diff.objects import Comparison, Later, handover
from inspector.document import document
from inspector.image import Image

__all__ = ["Change", "Diff", "Kind", "diff"]


def diff(
    before: Image,
    after: Image,
    *,
    addresses: bool = True,
    contents: bool = False,
    limit: int = 10000,
) -> Diff:
    """Compare two images.

    ``addresses`` False leaves out moves, ``contents`` True compares what memory files hold
    too (where both images have the pages).
    """
    found = Diff(limit=limit)
    comparison = Comparison(found, before, after, addresses)
    comparison.objects(document(before, encode=Later), document(after, encode=Later), "")
    handover(found, before, after)
    if addresses:
        columns.blocks(found, before, after)
    files = dict(before.folio_files()), dict(after.folio_files())
    for path in sorted(files[0].keys() & files[1].keys()):
        one, other = files[0][path], files[1][path]
        columns.folios(found, path, one, other, addresses)
        columns.descriptors(found, path, one, other)
        if contents:
            compare_contents(found, path, (before, one), (after, other))
    mappings.compare(found, before, after, addresses)
    return found
