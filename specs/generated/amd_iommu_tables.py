# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class AmdIommuTables(KaitaiStruct):
    """32 bytes for each device, by (bus << 8) | devfn. No KHO series for AMD is
    known; given for images that hold such a machine.

    An address field is read in pieces because the JavaScript runtime reads at
    most 32 bits at once; the instance without suffix is the address.

    .. seealso::
       AMD I/O Virtualization Technology (IOMMU) Specification (48882), section 2.2.2
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(AmdIommuTables, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.valid = self._io.read_bits_int_le(1) != 0
        self.translation_valid = self._io.read_bits_int_le(1) != 0
        self.reserved = self._io.read_bits_int_le(5)
        self.had = self._io.read_bits_int_le(2)
        self.mode = self._io.read_bits_int_le(3)
        self.host_table_lo = self._io.read_bits_int_le(20)
        self.host_table_hi = self._io.read_bits_int_le(20)
        self.ppr = self._io.read_bits_int_le(1) != 0
        self.gprp = self._io.read_bits_int_le(1) != 0
        self.giov = self._io.read_bits_int_le(1) != 0
        self.guest_valid = self._io.read_bits_int_le(1) != 0
        self.glx = self._io.read_bits_int_le(2)
        self.gcr3_a = self._io.read_bits_int_le(3)
        self.ir = self._io.read_bits_int_le(1) != 0
        self.iw = self._io.read_bits_int_le(1) != 0
        self.reserved_1 = self._io.read_bits_int_le(1) != 0
        self.domain_id = self._io.read_bits_int_le(16)
        self.gcr3_b = self._io.read_bits_int_le(16)
        self.device_tlb = self._io.read_bits_int_le(1) != 0
        self.suppress = self._io.read_bits_int_le(4)
        self.reserved_2 = self._io.read_bits_int_le(3)
        self.sys_mgt = self._io.read_bits_int_le(2)
        self.reserved_3 = self._io.read_bits_int_le(1) != 0
        self.gcr3_c = self._io.read_bits_int_le(21)
        self.int_valid = self._io.read_bits_int_le(1) != 0
        self.int_tab_len = self._io.read_bits_int_le(4)
        self.reserved_4 = self._io.read_bits_int_le(1) != 0
        self.int_table_lo = self._io.read_bits_int_le(26)
        self.int_table_hi = self._io.read_bits_int_le(20)
        self.reserved_5 = self._io.read_bits_int_le(2)
        self.guest_paging_mode = self._io.read_bits_int_le(2)
        self.init_pass = self._io.read_bits_int_le(1) != 0
        self.eint_pass = self._io.read_bits_int_le(1) != 0
        self.nmi_pass = self._io.read_bits_int_le(1) != 0
        self.reserved_6 = self._io.read_bits_int_le(1) != 0
        self.int_ctl = self._io.read_bits_int_le(2)
        self.lint0_pass = self._io.read_bits_int_le(1) != 0
        self.lint1_pass = self._io.read_bits_int_le(1) != 0
        self.attributes = self._io.read_bytes(8)


    def _fetch_instances(self):
        pass

    @property
    def gcr3_table(self):
        """Guest page table root."""
        if hasattr(self, '_m_gcr3_table'):
            return self._m_gcr3_table

        self._m_gcr3_table = ((self.gcr3_a * 4096 + self.gcr3_b * 32768) + self.gcr3_c * 2147483648)
        return getattr(self, '_m_gcr3_table', None)

    @property
    def host_table(self):
        if hasattr(self, '_m_host_table'):
            return self._m_host_table

        self._m_host_table = (self.host_table_lo * 4096 + self.host_table_hi * 4294967296)
        return getattr(self, '_m_host_table', None)

    @property
    def int_table(self):
        if hasattr(self, '_m_int_table'):
            return self._m_int_table

        self._m_int_table = (self.int_table_lo * 64 + self.int_table_hi * 4294967296)
        return getattr(self, '_m_int_table', None)
