"""What one case changes in an image: bytes written, pages left out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """``data`` is written at physical ``address``; None leaves out the 4K page there.

    ``note`` says in a few words what was meant.
    """

    address: int
    data: bytes | None
    note: str = ""
