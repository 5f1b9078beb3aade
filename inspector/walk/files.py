"""From a file's or an FLB's handler string to the decoder of its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from abi import registry
from abi.registry import Generation
from inspector import detect
from inspector.detect import Verdict
from inspector.walk.luo import File
from inspector.walk.memfd import walk_memfd

if TYPE_CHECKING:
    from inspector.image import Image

#: Decoder of a file's state: (image, generation, file) -> state or None.
Decoder = Callable[["Image", Generation, File], Any]


def _memfd(image: Image, generation: Generation, file: File) -> Any:
    return walk_memfd(image.survey, generation, file.data, file.path, image.preserved)


#: Layers whose files are decoded one by one, by their string alone.
DECODERS: dict[str, Decoder] = {
    "memfd": _memfd,
}


#: Layers whose files are decoded together, each being evidence for the others
#: (:mod:`inspector.passthrough`).
JOINT_LAYERS = ("iommufd", "vfio-pci")


def _is_joint(string: bytes) -> bool:
    text = string.decode("utf-8", "replace")
    return any(registry.named(layer, text) for layer in JOINT_LAYERS)


def layer_of(string: bytes) -> str | None:
    """The layer whose handlers use a string."""
    text = string.decode("utf-8", "replace")
    return next((layer for layer in DECODERS if registry.named(layer, text)), None)


def decode_states(image: Image, overrides: Mapping[str, Generation]) -> None:
    """Decode the state of every file and FLB that a decoder knows."""
    assert image.luo is not None
    chosen: dict[bytes, tuple[str, Verdict] | None] = {}
    for _, file in image.luo.files():
        if file.compatible not in chosen:
            layer = layer_of(file.compatible)
            if layer is None:
                chosen[file.compatible] = None
                if _is_joint(file.compatible):
                    continue
                image.survey.findings.info(
                    "KHO-LUO-014",
                    f"no decoder for files of handler {file.compatible!r}",
                    path=file.path,
                    address=file.address,
                )
                continue
            verdict = detect.by_string(layer, file.compatible, overrides.get(layer))
            chosen[file.compatible] = layer, verdict
            image.verdicts.setdefault(layer, verdict)
        known = chosen[file.compatible]
        if known is not None and known[1].generation is not None:
            file.state = DECODERS[known[0]](image, known[1].generation, file)
