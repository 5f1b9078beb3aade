# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import folio_entry
from . import kho_vmalloc


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class HugetlbLuo(KaitaiStruct):
    """Development only. FLB `hugetlb-v1` (top-level type, `ser`) with file handler
    `huge-memfd-v1` (`file`); before it an FLB `hugetlb`, unpacked and without a
    version (`ser_early`).
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(HugetlbLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = HugetlbLuo.Ser(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class File(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.File, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u8le()
            self.pos = self._io.read_u8le()
            self.nr_folios = self._io.read_u8le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)
            self.order = self._io.read_u1()


        def _fetch_instances(self):
            pass
            self.folios._fetch_instances()


    class FolioEarly(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.FolioEarly, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pfn_lo = self._io.read_bits_int_le(32)
            self.pfn_hi = self._io.read_bits_int_le(20)
            self.free = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(11)


        def _fetch_instances(self):
            pass

        @property
        def pfn(self):
            if hasattr(self, '_m_pfn'):
                return self._m_pfn

            self._m_pfn = (self.pfn_lo + self.pfn_hi * 4294967296)
            return getattr(self, '_m_pfn', None)


    class FolioList(KaitaiStruct):
        def __init__(self, num_folios, _io, _parent=None, _root=None):
            super(HugetlbLuo.FolioList, self).__init__(_io)
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



    class Hstate(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.Hstate, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_pages = self._io.read_u8le()
            self.order = self._io.read_u1()


        def _fetch_instances(self):
            pass


    class HstateEarly(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.HstateEarly, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_pages = self._io.read_u8le()
            self.order = self._io.read_u4le()
            self.reserved = self._io.read_u4le()
            self.folios = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.folios._fetch_instances()


    class Ser(KaitaiStruct):
        """The array always has four elements; `nr_hstates` of them are used."""
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.Ser, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hstates = []
            for i in range(4):
                self.hstates.append(HugetlbLuo.Hstate(self._io, self, self._root))

            self.nr_hstates = self._io.read_u1()
            if not self.nr_hstates <= 4:
                raise kaitaistruct.ValidationGreaterThanError(4, self.nr_hstates, self._io, u"/types/ser/seq/1")


        def _fetch_instances(self):
            pass
            for i in range(len(self.hstates)):
                pass
                self.hstates[i]._fetch_instances()



    class SerEarly(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(HugetlbLuo.SerEarly, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_hstates = self._io.read_u2le()
            if not self.nr_hstates <= 4:
                raise kaitaistruct.ValidationGreaterThanError(4, self.nr_hstates, self._io, u"/types/ser_early/seq/0")
            self.padding = self._io.read_bytes(6)
            self.hstates = []
            for i in range(4):
                self.hstates.append(HugetlbLuo.HstateEarly(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.hstates)):
                pass
                self.hstates[i]._fetch_instances()
