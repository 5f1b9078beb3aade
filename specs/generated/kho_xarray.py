# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoXarray(KaitaiStruct):
    """A tree of page-size nodes over keys of 54 bits, never in a release. As with
    the radix tree, a node does not say its level.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoXarray, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.root = self._io.read_u8le()


    def _fetch_instances(self):
        pass

    class Leaf(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoXarray.Leaf, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.values = []
            for i in range(self.page_size // 8):
                self.values.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.values)):
                pass



    class Node(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoXarray.Node, self).__init__(_io)
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
