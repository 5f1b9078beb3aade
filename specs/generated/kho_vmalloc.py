# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoVmalloc(KaitaiStruct):
    """Descriptor (top-level type, 16 bytes, embedded in the structs of the clients)
    and list of chunks of a preserved vmalloc area. Linux 6.18 and later; not
    versioned by itself.

    The area's content is that of the blocks of 2^order pages that the chunks
    list, one after the other. A full chunk always has a successor, which may be
    empty; generators in the wild also write a full last chunk with next = 0.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoVmalloc, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.first = self._io.read_u8le()
        self.total_pages = self._io.read_u4le()
        self.flags = self._io.read_u2le()
        self.order = self._io.read_u2le()


    def _fetch_instances(self):
        pass

    class Chunk(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoVmalloc.Chunk, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = KhoVmalloc.ChunkHdr(self._io, self, self._root)
            self.phys = []
            for i in range((self.page_size - 8) // 8):
                self.phys.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.phys)):
                pass



    class ChunkHdr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoVmalloc.ChunkHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.next = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    @property
    def is_alloc(self):
        if hasattr(self, '_m_is_alloc'):
            return self._m_is_alloc

        self._m_is_alloc = self.flags % 2 == 1
        return getattr(self, '_m_is_alloc', None)

    @property
    def is_huge_vmap(self):
        if hasattr(self, '_m_is_huge_vmap'):
            return self._m_is_huge_vmap

        self._m_is_huge_vmap = (self.flags // 2) % 2 == 1
        return getattr(self, '_m_is_huge_vmap', None)
