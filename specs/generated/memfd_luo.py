# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import folio_entry
from . import kho_vmalloc
from . import luo


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class MemfdLuo(KaitaiStruct):
    """What `data` of a LUO file points to when its handler is a memfd handler.

    | handler | kernel | type | bytes |
    |---------|--------|------|-------|
    | memfd-v1 | 6.19 | ser_v1 | 40 |
    | memfd-v2 | 7.1 to 7.3 | ser_v2 (top level) | 48 |
    | memfd-v2 | early development | ser_v2_early | 48 |
    | memfd | feature development | ser_features | 176 |

    `folios` is a vmalloc area of nr_folios `folio_entry`. The order of a folio
    is that of its block in the preserved-memory map.

    .. seealso::
       Source - https://docs.kernel.org/mm/memfd_preservation.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(MemfdLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = MemfdLuo.SerV2(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class FolioList(KaitaiStruct):
        """Content of the vmalloc area (or of a piece of it)."""
        def __init__(self, num_folios, _io, _parent=None, _root=None):
            super(MemfdLuo.FolioList, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_folios = num_folios
            self._read()

        def _read(self):
            self.folios = []
            for i in range(self.num_folios):
                self.folios.append(folio_entry.FolioEntry(self._io))



        def _fetch_instances(self):
            pass
            for i in range(len(self.folios)):
                pass
                self.folios[i]._fetch_instances()



    class SerFeatures(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(MemfdLuo.SerFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.features = luo.Luo.FeatureHdr(self._io)
            self.pos = self._io.read_u8le()
            self.size = self._io.read_u8le()
            self.seals = self._io.read_u4le()
            self.flags = self._io.read_u4le()
            self.nr_folios = self._io.read_u8le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.features._fetch_instances()
            self.folios._fetch_instances()


    class SerV1(KaitaiStruct):
        """Has no field for the seals; they are lost."""
        def __init__(self, _io, _parent=None, _root=None):
            super(MemfdLuo.SerV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pos = self._io.read_u8le()
            self.size = self._io.read_u8le()
            self.nr_folios = self._io.read_u8le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.folios._fetch_instances()


    class SerV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(MemfdLuo.SerV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pos = self._io.read_u8le()
            self.size = self._io.read_u8le()
            self.seals = self._io.read_u4le()
            self.flags = self._io.read_u4le()
            self.nr_folios = self._io.read_u8le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.folios._fetch_instances()


    class SerV2Early(KaitaiStruct):
        """Eight bits of seals and 56 reserved ones where v2 has two words."""
        def __init__(self, _io, _parent=None, _root=None):
            super(MemfdLuo.SerV2Early, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pos = self._io.read_u8le()
            self.size = self._io.read_u8le()
            self.seals = self._io.read_u1()
            self.reserved = self._io.read_bytes(7)
            self.nr_folios = self._io.read_u8le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.folios._fetch_instances()
