# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoBitmaps(KaitaiStruct):
    """Linux 6.16 to 7.0: the property `preserved-memory-map` holds the physical
    address of the first chunk; chunks are linked by `next`. All blocks of a
    chunk have its order. Bit b of a bitmap says that this block is preserved:

        phys_start + (b << (order + PAGE_SHIFT))

    One string, two layouts: a bitmap has 512 bytes in 6.16 and 6.17 and a page
    from 6.18 on, both under `kho-v1`.

    Chunks and bitmaps are not themselves in the map.

    The top-level type is a chunk of a 4K-page machine.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoBitmaps, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.chunk = KhoBitmaps.Chunk(4096, self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.chunk._fetch_instances()

    class BitmapPtr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoBitmaps.BitmapPtr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.phys_start = self._io.read_u8le()
            self.bitmap = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Bits(KaitaiStruct):
        def __init__(self, len_bitmap, _io, _parent=None, _root=None):
            super(KhoBitmaps.Bits, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.len_bitmap = len_bitmap
            self._read()

        def _read(self):
            self.preserve = self._io.read_bytes(self.len_bitmap)


        def _fetch_instances(self):
            pass


    class Chunk(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoBitmaps.Chunk, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = KhoBitmaps.ChunkHdr(self.capacity, self._io, self, self._root)
            self.bitmaps = []
            for i in range(self.hdr.num_elms):
                self.bitmaps.append(KhoBitmaps.BitmapPtr(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.bitmaps)):
                pass
                self.bitmaps[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 16
            return getattr(self, '_m_capacity', None)


    class ChunkHdr(KaitaiStruct):
        def __init__(self, capacity, _io, _parent=None, _root=None):
            super(KhoBitmaps.ChunkHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self._read()

        def _read(self):
            self.next = self._io.read_u8le()
            self.order = self._io.read_u4le()
            if not self.order <= 51:
                raise kaitaistruct.ValidationGreaterThanError(51, self.order, self._io, u"/types/chunk_hdr/seq/1")
            self.num_elms = self._io.read_u4le()
            if not self.num_elms <= self.capacity:
                raise kaitaistruct.ValidationGreaterThanError(self.capacity, self.num_elms, self._io, u"/types/chunk_hdr/seq/2")


        def _fetch_instances(self):
            pass
