# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class DmaAllocLuo(KaitaiStruct):
    """Handle of DMA memory that the SMMUv3 extensions of the IOMMU series keep
    (stream tables, context descriptor tables). Development only; two layouts,
    a (top level) and b.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(DmaAllocLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.alloc = DmaAllocLuo.AllocA(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.alloc._fetch_instances()

    class AllocA(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(DmaAllocLuo.AllocA, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.page_phys = self._io.read_u8le()
            self.size = self._io.read_u8le()
            self.attrs = self._io.read_u8le()
            self.force_decrypted = self._io.read_u1()
            self.padding = self._io.read_bytes(7)


        def _fetch_instances(self):
            pass


    class AllocB(KaitaiStruct):
        """18 bytes, then physical addresses at odd places. How many there are when
        the allocation is contiguous was not established; the caller says.
        """
        def __init__(self, num_page_phys, _io, _parent=None, _root=None):
            super(DmaAllocLuo.AllocB, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_page_phys = num_page_phys
            self._read()

        def _read(self):
            self.iova = self._io.read_u8le()
            self.nr_pages = self._io.read_u8le()
            if not self.nr_pages >= self.num_page_phys:
                raise kaitaistruct.ValidationLessThanError(self.num_page_phys, self.nr_pages, self._io, u"/types/alloc_b/seq/1")
            self.is_folio = self._io.read_u1()
            self.is_contiguous = self._io.read_u1()
            self.page_phys = []
            for i in range(self.num_page_phys):
                self.page_phys.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.page_phys)):
                pass
