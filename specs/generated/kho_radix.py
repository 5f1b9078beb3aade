# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoRadix(KaitaiStruct):
    """From Linux 7.1 on the property `preserved-memory-map` holds the physical
    address of the root node. The key of a block of 2^order pages at physical
    address p is

        key = 2^(64 - PAGE_SHIFT - order) | (p >> (PAGE_SHIFT + order))

    so that the highest set bit tells the order. With T = log2(PAGE_SIZE / 8) and
    B = PAGE_SHIFT + 3, a leaf (level 0) is a page of bits indexed by the low B
    bits of the key, and a node of level l is a page of physical addresses indexed
    by the next T bits: (key >> ((l - 1) * T + B)) % 2^T. The root has level

        D - 1,  D = ceil((64 - PAGE_SHIFT + 1 - B) / T) + 1

    which is 5 / 4 / 3 with 4K / 16K / 64K pages. The interim revision `kho-v2`
    left the "+ 1" of the order bit out: with 16K pages its root has level 3.
    kho-v3 and kho-v4 are identical here.

    Nodes do not say their level: the reader counts. Empty nodes are legal. Node
    pages are not themselves in the map, and the next kernel reuses them after
    boot.

    The top-level type is a node of a 4K-page machine.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoRadix, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.node = KhoRadix.Node(4096, self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.node._fetch_instances()

    class Leaf(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoRadix.Leaf, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.bitmap = self._io.read_bytes(self.page_size)


        def _fetch_instances(self):
            pass


    class Node(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoRadix.Node, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.table = []
            for i in range(self.page_size // 8):
                self.table.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.table)):
                pass
