# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class FolioEntry(KaitaiStruct):
    """16 bytes, the same for memfd, hugetlb memfd and guest_memfd (the meaning of
    the 12 bits differs). The frame number is read in two pieces because the
    JavaScript runtime reads at most 32 bits at once.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(FolioEntry, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.pfn_lo = self._io.read_bits_int_le(32)
        self.pfn_hi = self._io.read_bits_int_le(20)
        self.flags = self._io.read_bits_int_le(12)
        self.index = self._io.read_u8le()


    def _fetch_instances(self):
        pass

    @property
    def pfn(self):
        """First frame of the folio, 0 = hole."""
        if hasattr(self, '_m_pfn'):
            return self._m_pfn

        self._m_pfn = (self.pfn_lo + self.pfn_hi * 4294967296)
        return getattr(self, '_m_pfn', None)

    @property
    def reserved(self):
        """Name of the 12 bits in the hugetlb structs."""
        if hasattr(self, '_m_reserved'):
            return self._m_reserved

        self._m_reserved = self.flags
        return getattr(self, '_m_reserved', None)
