"""From a file's or an FLB's handler string to the decoder of its state."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from abi import registry
from abi.registry import Generation
from inspector import detect
from inspector.walk.luo import File
from inspector.walk.memfds import walk_memfds

if TYPE_CHECKING:
    from inspector.image import Image

Overrides = Mapping[str, Generation]

_PASSTHROUGH = "inspector.passthrough.decode"
_HANDLERS = "inspector.handlers.decode"
#: Layer -> the module that decodes its files, all of them together, being evidence for each
#: other. Imported where an image has such state: most images have none, and it takes its time.
FILE_DECODERS: Mapping[str, str] = {
    "iommufd": _PASSTHROUGH,
    "vfio-pci": _PASSTHROUGH,
    "kvm": _HANDLERS,
    "guest-memfd": _HANDLERS,
    "hugetlb": _HANDLERS,
    "tmpfs": _HANDLERS,
}
#: The same for layers whose state is in an FLB.
FLB_DECODERS: Mapping[str, str] = {
    "iommu": _PASSTHROUGH,
    "pci": _PASSTHROUGH,
    "hugetlb": _HANDLERS,
}


def file_decoder(string: bytes) -> str | None:
    """The module that decodes the files of a handler string, None if none does."""
    text = string.decode("utf-8", "replace")
    for layer, module in FILE_DECODERS.items():
        if any(text in generation.file_strings for generation in registry.generations(layer)):
            return module
    return None


def flb_decoder(name: bytes) -> str | None:
    """The module that decodes the FLB of a name, None if none does."""
    text = name.decode("utf-8", "replace")
    for layer, module in FLB_DECODERS.items():
        if any(text not in (g.handlers or ()) for g in registry.named(layer, text)):
            return module
    return None


def decode_states(image: Image, overrides: Overrides) -> None:
    """Decode the state of every file and FLB that a decoder knows."""
    assert image.luo is not None
    modules: dict[str, None] = {}
    memfds: dict[bytes, Generation | None] = {}
    others: set[bytes] = set()
    waiting: list[File] = []

    def walk() -> None:
        """The memory files met since the last call, which are all of one generation."""
        if waiting:
            generation = cast("Generation", memfds[waiting[0].compatible])
            files = [(file.data, file.path) for file in waiting]
            states = walk_memfds(image.survey, generation, files, image.preserved)
            for file, state in zip(waiting, states, strict=True):
                file.state = state
            waiting.clear()

    for _, file in image.luo.files():
        string = file.compatible
        if string not in memfds and string not in others:
            if registry.named("memfd", string.decode("utf-8", "replace")):
                verdict = detect.by_string("memfd", string, overrides.get("memfd"))
                memfds[string] = verdict.generation
                image.verdicts.setdefault("memfd", verdict)
            else:
                others.add(string)
                module = file_decoder(string)
                if module is not None:
                    modules[module] = None
                else:
                    walk()  # what is found stands in the order of the files
                    image.survey.findings.info(
                        "KHO-LUO-014",
                        f"no decoder for files of handler {string!r}",
                        path=file.path,
                        address=file.address,
                    )
        if memfds.get(string) is not None:
            if waiting and string != waiting[0].compatible:
                walk()
            waiting.append(file)
    walk()
    for name in {flb.name for flb in image.luo.flbs if flb.data}:
        module = flb_decoder(name)
        if module is not None:
            modules[module] = None
    for module in sorted(modules):
        import_module(module).decode(image, overrides)
