"""Walkers: from an address and a generation to objects, pure in both and in the page size.

One module per layer. A walker takes a :class:`inspector.survey.Survey` first, never
raises for what memory contains, and returns dataclasses whose large parts are columns.
"""
