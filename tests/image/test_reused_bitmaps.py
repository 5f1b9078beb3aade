"""Bitmaps of preserved memory that the next kernel has put to other use."""

import random

from inspector import image as images
from inspector.image import MapState, Moment
from inspector.kernel import scenario
from inspector.memory.sparse import SparseMemory

TEXT = """
kernel = "linux-6.17"
seed = 1
[machine]
ram = ["128M"]
[kho_test]
pages = 64
[[reserve_mem]]
name = "trace"
size = "1M"
"""


def test_garbage_in_the_bitmaps_is_no_map() -> None:
    memory = scenario.parse(TEXT, "small").run().memory
    with images.open(memory) as whole:
        assert whole.map_state is MapState.INTACT
        assert whole.moment is Moment.HANDED_OVER
        preserved = whole.preserved
        bitmaps = preserved.nodes[preserved.node_sizes == 512].tolist()
    assert len(bitmaps) > 1
    reused, noise = SparseMemory.over(memory), random.Random(5)
    for at in bitmaps:
        # Noise on top of what is there: the blobs stay in the map, as in a real capture.
        old = memory.read(at, 512)
        reused.write(at, bytes(a | noise.getrandbits(8) for a in old))
    with images.open(reused) as image:
        assert image.map_state in (MapState.DAMAGED, MapState.LOST)
        assert image.moment is Moment.INCOMING
