# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Smmuv3Tables(KaitaiStruct):
    """Tables in memory that an Arm SMMUv3 walks for a stream.

    STRTAB_BASE_CFG says the form of the stream table (`strtab_base_cfg`): linear,
    2^LOG2SIZE entries; or two-level, 2^(LOG2SIZE - SPLIT) level-1 descriptors,
    by StreamID >> SPLIT.

    An address field is read in two pieces because the JavaScript runtime reads at
    most 32 bits at once; the instance without suffix is the address.

    The top-level type is one stream table entry.

    .. seealso::
       Arm System MMU Architecture Specification, version 3 (IHI 0070), chapter 5
    """

    class CdFormat(IntEnum):
        linear = 0
        two_level_4k = 1
        two_level_64k = 2

    class Granule(IntEnum):
        g4k = 0
        g64k = 1
        g16k = 2

    class SteConfig(IntEnum):
        abort = 0
        bypass = 4
        stage_1 = 5
        stage_2 = 6
        nested = 7

    class StrtabFmt(IntEnum):
        linear = 0
        two_level = 1
    def __init__(self, _io, _parent=None, _root=None):
        super(Smmuv3Tables, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.entry = Smmuv3Tables.Ste(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.entry._fetch_instances()

    class Cd(KaitaiStruct):
        """Context descriptor, 64 bytes."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.Cd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.t0sz = self._io.read_bits_int_le(6)
            self.tg0 = KaitaiStream.resolve_enum(Smmuv3Tables.Granule, self._io.read_bits_int_le(2))
            self.ir0 = self._io.read_bits_int_le(2)
            self.or0 = self._io.read_bits_int_le(2)
            self.sh0 = self._io.read_bits_int_le(2)
            self.epd0 = self._io.read_bits_int_le(1) != 0
            self.endi = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(14)
            self.epd1 = self._io.read_bits_int_le(1) != 0
            self.valid = self._io.read_bits_int_le(1) != 0
            self.ips = self._io.read_bits_int_le(3)
            self.reserved_1 = self._io.read_bits_int_le(3)
            self.tbi0 = self._io.read_bits_int_le(1) != 0
            self.reserved_2 = self._io.read_bits_int_le(2)
            self.aa64 = self._io.read_bits_int_le(1) != 0
            self.hd = self._io.read_bits_int_le(1) != 0
            self.ha = self._io.read_bits_int_le(1) != 0
            self.s = self._io.read_bits_int_le(1) != 0
            self.r = self._io.read_bits_int_le(1) != 0
            self.a = self._io.read_bits_int_le(1) != 0
            self.aset = self._io.read_bits_int_le(1) != 0
            self.asid = self._io.read_bits_int_le(16)
            self.reserved_3 = self._io.read_bits_int_le(3)
            self.haft = self._io.read_bits_int_le(1) != 0
            self.ttb0_lo = self._io.read_bits_int_le(28)
            self.ttb0_hi = self._io.read_bits_int_le(20)
            self.reserved_4 = self._io.read_bits_int_le(12)
            self.reserved_5 = self._io.read_bytes(8)
            self.mair = []
            for i in range(8):
                self.mair.append(self._io.read_u1())

            self.rest = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass
            for i in range(len(self.mair)):
                pass


        @property
        def ttb0(self):
            if hasattr(self, '_m_ttb0'):
                return self._m_ttb0

            self._m_ttb0 = (self.ttb0_lo * 16 + self.ttb0_hi * 4294967296)
            return getattr(self, '_m_ttb0', None)


    class CdL1Desc(KaitaiStruct):
        """Level-1 descriptor of a two-level context descriptor table."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.CdL1Desc, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.valid = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(11)
            self.l2ptr_lo = self._io.read_bits_int_le(20)
            self.l2ptr_hi = self._io.read_bits_int_le(20)
            self.reserved_1 = self._io.read_bits_int_le(12)


        def _fetch_instances(self):
            pass

        @property
        def l2ptr(self):
            if hasattr(self, '_m_l2ptr'):
                return self._m_l2ptr

            self._m_l2ptr = (self.l2ptr_lo * 4096 + self.l2ptr_hi * 4294967296)
            return getattr(self, '_m_l2ptr', None)


    class CdTable(KaitaiStruct):
        def __init__(self, num_entries, _io, _parent=None, _root=None):
            super(Smmuv3Tables.CdTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_entries = num_entries
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self.num_entries):
                self.entries.append(Smmuv3Tables.Cd(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class L1Desc(KaitaiStruct):
        """Level-1 descriptor of a two-level stream table."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.L1Desc, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.span = self._io.read_bits_int_le(5)
            self.reserved = self._io.read_bits_int_le(1) != 0
            self.l2ptr_lo = self._io.read_bits_int_le(26)
            self.l2ptr_hi = self._io.read_bits_int_le(20)
            self.reserved_1 = self._io.read_bits_int_le(12)


        def _fetch_instances(self):
            pass

        @property
        def l2ptr(self):
            if hasattr(self, '_m_l2ptr'):
                return self._m_l2ptr

            self._m_l2ptr = (self.l2ptr_lo * 64 + self.l2ptr_hi * 4294967296)
            return getattr(self, '_m_l2ptr', None)


    class L1Table(KaitaiStruct):
        def __init__(self, num_entries, _io, _parent=None, _root=None):
            super(Smmuv3Tables.L1Table, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_entries = num_entries
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self.num_entries):
                self.entries.append(Smmuv3Tables.L1Desc(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class Ste(KaitaiStruct):
        """Stream table entry, 64 bytes."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.Ste, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.valid = self._io.read_bits_int_le(1) != 0
            self.config = KaitaiStream.resolve_enum(Smmuv3Tables.SteConfig, self._io.read_bits_int_le(3))
            self.s1_fmt = KaitaiStream.resolve_enum(Smmuv3Tables.CdFormat, self._io.read_bits_int_le(2))
            self.s1_context_lo = self._io.read_bits_int_le(26)
            self.s1_context_hi = self._io.read_bits_int_le(20)
            self.reserved = self._io.read_bits_int_le(7)
            self.s1_cdmax = self._io.read_bits_int_le(5)
            self.s1_dss = self._io.read_bits_int_le(2)
            self.s1_cir = self._io.read_bits_int_le(2)
            self.s1_cor = self._io.read_bits_int_le(2)
            self.s1_csh = self._io.read_bits_int_le(2)
            self.reserved_1 = self._io.read_bits_int_le(11)
            self.mev = self._io.read_bits_int_le(1) != 0
            self.reserved_2 = self._io.read_bits_int_le(5)
            self.s2_fwb = self._io.read_bits_int_le(1) != 0
            self.reserved_3 = self._io.read_bits_int_le(1) != 0
            self.s1_stalld = self._io.read_bits_int_le(1) != 0
            self.eats = self._io.read_bits_int_le(2)
            self.strw = self._io.read_bits_int_le(2)
            self.reserved_4 = self._io.read_bits_int_le(12)
            self.shcfg = self._io.read_bits_int_le(2)
            self.reserved_5 = self._io.read_bits_int_le(18)
            self.s2_vmid = self._io.read_bits_int_le(16)
            self.reserved_6 = self._io.read_bits_int_le(16)
            self.s2_t0sz = self._io.read_bits_int_le(6)
            self.s2_sl0 = self._io.read_bits_int_le(2)
            self.s2_ir0 = self._io.read_bits_int_le(2)
            self.s2_or0 = self._io.read_bits_int_le(2)
            self.s2_sh0 = self._io.read_bits_int_le(2)
            self.s2_tg = KaitaiStream.resolve_enum(Smmuv3Tables.Granule, self._io.read_bits_int_le(2))
            self.s2_ps = self._io.read_bits_int_le(3)
            self.s2_aa64 = self._io.read_bits_int_le(1) != 0
            self.s2_endi = self._io.read_bits_int_le(1) != 0
            self.reserved_7 = self._io.read_bits_int_le(1) != 0
            self.s2_ptw = self._io.read_bits_int_le(1) != 0
            self.reserved_8 = self._io.read_bits_int_le(2)
            self.s2_s = self._io.read_bits_int_le(1) != 0
            self.s2_r = self._io.read_bits_int_le(1) != 0
            self.reserved_9 = self._io.read_bits_int_le(5)
            self.reserved_10 = self._io.read_bits_int_le(4)
            self.s2_ttb_lo = self._io.read_bits_int_le(28)
            self.s2_ttb_hi = self._io.read_bits_int_le(20)
            self.reserved_11 = self._io.read_bits_int_le(12)
            self.rest = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass

        @property
        def s1_context(self):
            if hasattr(self, '_m_s1_context'):
                return self._m_s1_context

            self._m_s1_context = (self.s1_context_lo * 64 + self.s1_context_hi * 4294967296)
            return getattr(self, '_m_s1_context', None)

        @property
        def s2_ttb(self):
            if hasattr(self, '_m_s2_ttb'):
                return self._m_s2_ttb

            self._m_s2_ttb = (self.s2_ttb_lo * 16 + self.s2_ttb_hi * 4294967296)
            return getattr(self, '_m_s2_ttb', None)


    class StreamTable(KaitaiStruct):
        def __init__(self, num_entries, _io, _parent=None, _root=None):
            super(Smmuv3Tables.StreamTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_entries = num_entries
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self.num_entries):
                self.entries.append(Smmuv3Tables.Ste(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class StrtabBase(KaitaiStruct):
        """Register value."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.StrtabBase, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved = self._io.read_bits_int_le(6)
            self.addr_lo = self._io.read_bits_int_le(26)
            self.addr_hi = self._io.read_bits_int_le(20)
            self.reserved_1 = self._io.read_bits_int_le(10)
            self.read_allocate = self._io.read_bits_int_le(1) != 0
            self.reserved_2 = self._io.read_bits_int_le(1) != 0


        def _fetch_instances(self):
            pass

        @property
        def addr(self):
            if hasattr(self, '_m_addr'):
                return self._m_addr

            self._m_addr = (self.addr_lo * 64 + self.addr_hi * 4294967296)
            return getattr(self, '_m_addr', None)


    class StrtabBaseCfg(KaitaiStruct):
        """Register value."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Smmuv3Tables.StrtabBaseCfg, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.log2size = self._io.read_bits_int_le(6)
            self.split = self._io.read_bits_int_le(5)
            self.reserved = self._io.read_bits_int_le(5)
            self.fmt = KaitaiStream.resolve_enum(Smmuv3Tables.StrtabFmt, self._io.read_bits_int_le(2))
            self.reserved_1 = self._io.read_bits_int_le(14)
            if (not (self._io.is_eof())):
                pass
                self.reserved_2 = self._io.read_bits_int_le(32)



        def _fetch_instances(self):
            pass
            if (not (self._io.is_eof())):
                pass
