# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoBlock(KaitaiStruct):
    """A linked list of pages of equal entries (Linux 7.2 and later): sessions
    (80 bytes), files (64), devices of the last PCI layout (8). The format files
    of those clients have typed blocks; the top-level type gives raw entries.

    The kernel refuses a cycle, more than 10000 blocks, and a count of 0 or above
    capacity.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, page_size, len_entry, _io, _parent=None, _root=None):
        super(KhoBlock, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self.page_size = page_size
        self.len_entry = len_entry
        self._read()

    def _read(self):
        self.hdr = KhoBlock.Header((self.page_size - 16) // self.len_entry, self._io, self, self._root)
        self.entries = []
        for i in range(self.hdr.count):
            self.entries.append(self._io.read_bytes(self.len_entry))



    def _fetch_instances(self):
        pass
        self.hdr._fetch_instances()
        for i in range(len(self.entries)):
            pass


    class Header(KaitaiStruct):
        def __init__(self, capacity, _io, _parent=None, _root=None):
            super(KhoBlock.Header, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self._read()

        def _read(self):
            self.next = self._io.read_u8le()
            self.count = self._io.read_u8le()
            if not self.count <= self.capacity:
                raise kaitaistruct.ValidationGreaterThanError(self.capacity, self.count, self._io, u"/types/header/seq/1")


        def _fetch_instances(self):
            pass
