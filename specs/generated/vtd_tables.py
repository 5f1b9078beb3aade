# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class VtdTables(KaitaiStruct):
    """Tables in memory that an Intel IOMMU walks for a device, and that the hw
    object of a preserved IOMMU points to. Whether the unit is in legacy or in
    scalable mode is bit 10 of its root address register, not in the tables.

    An address field is read in two pieces because the JavaScript runtime reads at
    most 32 bits at once; the instance without suffix is the address.

    The top-level type is a root table of legacy mode.

    .. seealso::
       Intel Virtualization Technology for Directed I/O, Architecture Specification, chapter 9
    """

    class PasidTranslationType(IntEnum):
        first_stage = 1
        second_stage = 2
        nested = 3
        pass_through = 4

    class TranslationType(IntEnum):
        second_stage = 0
        second_stage_device_tlb = 1
        pass_through = 2
        reserved = 3
    def __init__(self, _io, _parent=None, _root=None):
        super(VtdTables, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.table = VtdTables.RootTableLegacy(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.table._fetch_instances()

    class ContextEntryLegacy(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.ContextEntryLegacy, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.fault_disable = self._io.read_bits_int_le(1) != 0
            self.translation_type = KaitaiStream.resolve_enum(VtdTables.TranslationType, self._io.read_bits_int_le(2))
            self.reserved = self._io.read_bits_int_le(8)
            self.second_stage_lo = self._io.read_bits_int_le(20)
            self.second_stage_hi = self._io.read_bits_int_le(32)
            self.address_width = self._io.read_bits_int_le(3)
            self.software = self._io.read_bits_int_le(4)
            self.reserved_1 = self._io.read_bits_int_le(1) != 0
            self.domain_id = self._io.read_bits_int_le(16)
            self.reserved_2 = self._io.read_bits_int_le(8)
            self.reserved_3 = self._io.read_bits_int_le(32)


        def _fetch_instances(self):
            pass

        @property
        def second_stage(self):
            if hasattr(self, '_m_second_stage'):
                return self._m_second_stage

            self._m_second_stage = (self.second_stage_lo * 4096 + self.second_stage_hi * 4294967296)
            return getattr(self, '_m_second_stage', None)


    class ContextEntryScalable(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.ContextEntryScalable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.fault_disable = self._io.read_bits_int_le(1) != 0
            self.device_tlb = self._io.read_bits_int_le(1) != 0
            self.pasid_enable = self._io.read_bits_int_le(1) != 0
            self.page_requests = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(4)
            self.pasid_dir_size = self._io.read_bits_int_le(3)
            self.pasid_dir_lo = self._io.read_bits_int_le(20)
            self.pasid_dir_hi = self._io.read_bits_int_le(32)
            self.rid_pasid = self._io.read_bits_int_le(20)
            self.rid_priv = self._io.read_bits_int_le(1) != 0
            self.reserved_1 = self._io.read_bits_int_le(11)
            self.reserved_2 = self._io.read_bits_int_le(32)
            self.reserved_3 = self._io.read_bytes(16)


        def _fetch_instances(self):
            pass

        @property
        def pasid_dir(self):
            if hasattr(self, '_m_pasid_dir'):
                return self._m_pasid_dir

            self._m_pasid_dir = (self.pasid_dir_lo * 4096 + self.pasid_dir_hi * 4294967296)
            return getattr(self, '_m_pasid_dir', None)


    class ContextTableLegacy(KaitaiStruct):
        """One page, by devfn."""
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.ContextTableLegacy, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(256):
                self.entries.append(VtdTables.ContextEntryLegacy(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class ContextTableScalable(KaitaiStruct):
        """One page, by devfn modulo 128."""
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.ContextTableScalable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(128):
                self.entries.append(VtdTables.ContextEntryScalable(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class PasidDir(KaitaiStruct):
        """By PASID / 64; max_pasid / 64 entries."""
        def __init__(self, num_entries, _io, _parent=None, _root=None):
            super(VtdTables.PasidDir, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_entries = num_entries
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self.num_entries):
                self.entries.append(VtdTables.PasidDirEntry(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class PasidDirEntry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.PasidDirEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.fault_disable = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(10)
            self.pasid_table_lo = self._io.read_bits_int_le(20)
            self.pasid_table_hi = self._io.read_bits_int_le(32)


        def _fetch_instances(self):
            pass

        @property
        def pasid_table(self):
            if hasattr(self, '_m_pasid_table'):
                return self._m_pasid_table

            self._m_pasid_table = (self.pasid_table_lo * 4096 + self.pasid_table_hi * 4294967296)
            return getattr(self, '_m_pasid_table', None)


    class PasidEntry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.PasidEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.fault_disable = self._io.read_bits_int_le(1) != 0
            self.address_width = self._io.read_bits_int_le(3)
            self.execute = self._io.read_bits_int_le(1) != 0
            self.translation_type = KaitaiStream.resolve_enum(VtdTables.PasidTranslationType, self._io.read_bits_int_le(3))
            self.access_dirty = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(2)
            self.second_stage_lo = self._io.read_bits_int_le(20)
            self.second_stage_hi = self._io.read_bits_int_le(32)
            self.domain_id = self._io.read_bits_int_le(16)
            self.reserved_1 = self._io.read_bits_int_le(7)
            self.page_walk_snoop = self._io.read_bits_int_le(1) != 0
            self.page_snoop = self._io.read_bits_int_le(1) != 0
            self.reserved_2 = self._io.read_bits_int_le(7)
            self.reserved_3 = self._io.read_bits_int_le(32)
            self.supervisor_requests = self._io.read_bits_int_le(1) != 0
            self.reserved_4 = self._io.read_bits_int_le(1) != 0
            self.first_stage_mode = self._io.read_bits_int_le(2)
            self.write_protect = self._io.read_bits_int_le(1) != 0
            self.reserved_5 = self._io.read_bits_int_le(2)
            self.extended_access = self._io.read_bits_int_le(1) != 0
            self.reserved_6 = self._io.read_bits_int_le(4)
            self.first_stage_lo = self._io.read_bits_int_le(20)
            self.first_stage_hi = self._io.read_bits_int_le(32)
            self.rest = self._io.read_bytes(40)


        def _fetch_instances(self):
            pass

        @property
        def first_stage(self):
            if hasattr(self, '_m_first_stage'):
                return self._m_first_stage

            self._m_first_stage = (self.first_stage_lo * 4096 + self.first_stage_hi * 4294967296)
            return getattr(self, '_m_first_stage', None)

        @property
        def second_stage(self):
            if hasattr(self, '_m_second_stage'):
                return self._m_second_stage

            self._m_second_stage = (self.second_stage_lo * 4096 + self.second_stage_hi * 4294967296)
            return getattr(self, '_m_second_stage', None)


    class PasidTable(KaitaiStruct):
        """One page, by PASID modulo 64."""
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.PasidTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(64):
                self.entries.append(VtdTables.PasidEntry(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class RootEntryLegacy(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.RootEntryLegacy, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(11)
            self.context_table_lo = self._io.read_bits_int_le(20)
            self.context_table_hi = self._io.read_bits_int_le(32)
            self.reserved_hi = self._io.read_u8le()


        def _fetch_instances(self):
            pass

        @property
        def context_table(self):
            if hasattr(self, '_m_context_table'):
                return self._m_context_table

            self._m_context_table = (self.context_table_lo * 4096 + self.context_table_hi * 4294967296)
            return getattr(self, '_m_context_table', None)


    class RootEntryScalable(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.RootEntryScalable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.lower = VtdTables.RootHalfScalable(self._io, self, self._root)
            self.upper = VtdTables.RootHalfScalable(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.lower._fetch_instances()
            self.upper._fetch_instances()


    class RootHalfScalable(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.RootHalfScalable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.present = self._io.read_bits_int_le(1) != 0
            self.reserved = self._io.read_bits_int_le(11)
            self.context_table_lo = self._io.read_bits_int_le(20)
            self.context_table_hi = self._io.read_bits_int_le(32)


        def _fetch_instances(self):
            pass

        @property
        def context_table(self):
            if hasattr(self, '_m_context_table'):
                return self._m_context_table

            self._m_context_table = (self.context_table_lo * 4096 + self.context_table_hi * 4294967296)
            return getattr(self, '_m_context_table', None)


    class RootTableLegacy(KaitaiStruct):
        """One page, by bus."""
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.RootTableLegacy, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(256):
                self.entries.append(VtdTables.RootEntryLegacy(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class RootTableScalable(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VtdTables.RootTableScalable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(256):
                self.entries.append(VtdTables.RootEntryScalable(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()
