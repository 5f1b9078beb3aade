# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class IommuLuo(KaitaiStruct):
    """FLB data of `iommu-liveupdate-v1` (postings v2, v3 and the first SMMUv3
    extension) and of `iommu-liveupdate` with a version word (later). Never in a
    release up to Linux 7.3. For the postings before see `iommu_luo_rfc`.

    | posting | root | hw | domain | device |
    |---------|------|----|--------|--------|
    | v2 (2026-04) | flb | hw_v2 21 | domain_v2 34 | device_v2 37 |
    | v3 base (2026-06) | flb | hw_base 24 | domain_v3 37 | device_base 40 |
    | v3 with VT-d | flb | hw_v3 112 | domain_v3 37 | device_v3 56 |
    | SMMUv3 extension A | flb | hw_smmuv3_a 112 | domain_v3 37 | device_smmuv3_a 64 |
    | version word, base | flb_versioned | hw_base 24 | domain_v3 37 | device_base 40 |
    | version word | flb_versioned | hw_v4 112 | domain_v4 40 | device_v4 72 |

    The string does not tell v2, v3 and the extension apart, nor the version word
    its base and full form: a reader tries the strides, and keeps the one for
    which domain_phys and iommu_phys hit object boundaries.

    An array is a chain of pages {next_array_phys, nr_objects, objects}. Objects
    follow without gaps, whatever their alignment. Deleted slots are never reused.

    The top-level type is the root of the version-word revision.
    """

    class IommuType(IntEnum):
        invalid = 0
        intel = 1
        arm_smmuv3 = 2
    def __init__(self, _io, _parent=None, _root=None):
        super(IommuLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.flb = IommuLuo.FlbVersioned(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.flb._fetch_instances()

    class ArrayHdr(KaitaiStruct):
        def __init__(self, capacity, _io, _parent=None, _root=None):
            super(IommuLuo.ArrayHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self._read()

        def _read(self):
            self.next_array_phys = self._io.read_u8le()
            self.nr_objects = self._io.read_u8le()
            if not self.nr_objects <= self.capacity:
                raise kaitaistruct.ValidationGreaterThanError(self.capacity, self.nr_objects, self._io, u"/types/array_hdr/seq/1")


        def _fetch_instances(self):
            pass


    class DevMap(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DevMap, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.attachment_id = self._io.read_u8le()
            self.domain_phys = self._io.read_u8le()
            self.iommu_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceArchA(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArchA, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.raw = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            _ = self.intel
            if hasattr(self, '_m_intel'):
                pass
                self._m_intel._fetch_instances()

            _ = self.smmuv3
            if hasattr(self, '_m_smmuv3'):
                pass
                self._m_smmuv3._fetch_instances()


        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_intel = IommuLuo.DeviceIntelV3(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_smmuv3 = IommuLuo.DeviceSmmuv3(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_smmuv3', None)


    class DeviceArchV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArchV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.raw = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            _ = self.intel
            if hasattr(self, '_m_intel'):
                pass
                self._m_intel._fetch_instances()

            _ = self.smmuv3
            if hasattr(self, '_m_smmuv3'):
                pass
                self._m_smmuv3._fetch_instances()


        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_intel = IommuLuo.DeviceIntelV4(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_smmuv3 = IommuLuo.DeviceSmmuv3(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_smmuv3', None)


    class DeviceArrayBase(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArrayBase, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 40, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DeviceBase(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DeviceArraySmmuv3A(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArraySmmuv3A, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 64, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DeviceSmmuv3A(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DeviceArrayV2(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArrayV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 37, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DeviceV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DeviceArrayV3(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArrayV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 56, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DeviceV3(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DeviceArrayV4(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceArrayV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 72, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DeviceV4(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DeviceBase(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceBase, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.devid = self._io.read_u4le()
            self.pci_domain_nr = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuo.DevMap(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.domain_iommu_ser._fetch_instances()


    class DeviceIntelV3(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceIntelV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pasid_table = self._io.read_u8le()
            self.max_pasid = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceIntelV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceIntelV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.restored = self._io.read_u1()
            self.padding = self._io.read_bytes(7)
            self.pasid_table = self._io.read_u8le()
            self.max_pasid = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceSmmuv3(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceSmmuv3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.l1_cdtab_lu_state = self._io.read_u8le()
            self.num_l2_cdtables = self._io.read_u4le()
            self.padding = self._io.read_u4le()
            self.l2_cdtab_lu_states_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceSmmuv3A(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceSmmuv3A, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.devid = self._io.read_u4le()
            self.pci_domain_nr = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuo.DevMap(self._io, self, self._root)
            self._raw_arch = self._io.read_bytes(24)
            _io__raw_arch = KaitaiStream(BytesIO(self._raw_arch))
            self.arch = IommuLuo.DeviceArchA(_io__raw_arch, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.domain_iommu_ser._fetch_instances()
            self.arch._fetch_instances()

        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            self._m_intel = self.arch.intel
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            self._m_smmuv3 = self.arch.smmuv3
            return getattr(self, '_m_smmuv3', None)


    class DeviceV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.HdrV2(self._io, self, self._root)
            self.devid = self._io.read_u4le()
            self.pci_domain_nr = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuo.DevMap(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.domain_iommu_ser._fetch_instances()


    class DeviceV3(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.devid = self._io.read_u4le()
            self.pci_domain_nr = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuo.DevMap(self._io, self, self._root)
            self.intel = IommuLuo.DeviceIntelV3(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.domain_iommu_ser._fetch_instances()
            self.intel._fetch_instances()


    class DeviceV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DeviceV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.devid = self._io.read_u4le()
            self.pci_domain_nr = self._io.read_u4le()
            self.dma_owner_token = self._io.read_u8le()
            self.domain_iommu_ser = IommuLuo.DevMap(self._io, self, self._root)
            self._raw_arch = self._io.read_bytes(24)
            _io__raw_arch = KaitaiStream(BytesIO(self._raw_arch))
            self.arch = IommuLuo.DeviceArchV4(_io__raw_arch, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.domain_iommu_ser._fetch_instances()
            self.arch._fetch_instances()

        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            self._m_intel = self.arch.intel
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            self._m_smmuv3 = self.arch.smmuv3
            return getattr(self, '_m_smmuv3', None)


    class DomainArrayV2(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DomainArrayV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 34, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DomainV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DomainArrayV3(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DomainArrayV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 37, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DomainV3(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DomainArrayV4(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.DomainArrayV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 40, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.DomainV4(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class DomainV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DomainV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.HdrV2(self._io, self, self._root)
            self.top_table_phys = self._io.read_u8le()
            self.top_level = self._io.read_u8le()
            self.vasz = self._io.read_u4le()
            self.sign_extend = self._io.read_bits_int_le(1) != 0
            self.unused = self._io.read_bits_int_le(7)
            self.restored_domain = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()


    class DomainV3(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DomainV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.top_table_phys = self._io.read_u8le()
            self.top_level = self._io.read_u8le()
            self.vasz = self._io.read_u4le()
            self.sign_extend = self._io.read_bits_int_le(1) != 0
            self.unused = self._io.read_bits_int_le(7)
            self.restored_domain = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()


    class DomainV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.DomainV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.top_table_phys = self._io.read_u8le()
            self.top_level = self._io.read_u8le()
            self.vasz = self._io.read_u4le()
            self.sign_extend = self._io.read_u1()
            self.padding = self._io.read_bytes(3)
            self.restored_domain = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()


    class Flb(KaitaiStruct):
        """None of the addresses is 0, even without objects."""
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.Flb, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.iommu_array_phys = self._io.read_u8le()
            self.iommu_domain_array_phys = self._io.read_u8le()
            self.device_array_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class FlbVersioned(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.FlbVersioned, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.version = self._io.read_u8le()
            if not self.version == 1:
                raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/types/flb_versioned/seq/0")
            self.iommu_array_phys = self._io.read_u8le()
            self.iommu_domain_array_phys = self._io.read_u8le()
            self.device_array_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Hdr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.Hdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ref_count = self._io.read_u4le()
            self.flags = self._io.read_u4le()


        def _fetch_instances(self):
            pass

        @property
        def deleted(self):
            if hasattr(self, '_m_deleted'):
                return self._m_deleted

            self._m_deleted = self.flags % 2 == 1
            return getattr(self, '_m_deleted', None)

        @property
        def incoming(self):
            if hasattr(self, '_m_incoming'):
                return self._m_incoming

            self._m_incoming = (self.flags // 2) % 2 == 1
            return getattr(self, '_m_incoming', None)


    class HdrV2(KaitaiStruct):
        """Five bytes."""
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HdrV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ref_count = self._io.read_u4le()
            self.deleted = self._io.read_bits_int_le(1) != 0
            self.incoming = self._io.read_bits_int_le(1) != 0
            self.unused = self._io.read_bits_int_le(6)


        def _fetch_instances(self):
            pass


    class HwArchA(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwArchA, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.raw = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            _ = self.intel
            if hasattr(self, '_m_intel'):
                pass
                self._m_intel._fetch_instances()

            _ = self.smmuv3
            if hasattr(self, '_m_smmuv3'):
                pass
                self._m_smmuv3._fetch_instances()


        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_intel = IommuLuo.HwIntel(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_smmuv3 = IommuLuo.HwSmmuv3OfA(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_smmuv3', None)


    class HwArchV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwArchV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.raw = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            _ = self.intel
            if hasattr(self, '_m_intel'):
                pass
                self._m_intel._fetch_instances()

            _ = self.smmuv3
            if hasattr(self, '_m_smmuv3'):
                pass
                self._m_smmuv3._fetch_instances()


        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_intel = IommuLuo.HwIntel(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            _pos = self._io.pos()
            self._io.seek(0)
            self._m_smmuv3 = IommuLuo.HwSmmuv3OfV4(self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_smmuv3', None)


    class HwArrayBase(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.HwArrayBase, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 24, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.HwBase(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class HwArraySmmuv3A(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.HwArraySmmuv3A, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 112, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.HwSmmuv3A(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class HwArrayV2(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.HwArrayV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 21, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.HwV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class HwArrayV3(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.HwArrayV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 112, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.HwV3(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class HwArrayV4(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(IommuLuo.HwArrayV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = IommuLuo.ArrayHdr((self.page_size - 16) // 112, self._io, self, self._root)
            self.objects = []
            for i in range(self.hdr.nr_objects):
                self.objects.append(IommuLuo.HwV4(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.objects)):
                pass
                self.objects[i]._fetch_instances()



    class HwBase(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwBase, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()


    class HwIntel(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwIntel, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.restored = self._io.read_u1()
            self.padding = self._io.read_bytes(7)
            self.phys_addr = self._io.read_u8le()
            self.root_table = self._io.read_u8le()
            self.context_tables_bitmap = self._io.read_bytes(64)


        def _fetch_instances(self):
            pass


    class HwSmmuv3A(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwSmmuv3A, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = self._io.read_u8le()
            self._raw_arch = self._io.read_bytes(88)
            _io__raw_arch = KaitaiStream(BytesIO(self._raw_arch))
            self.arch = IommuLuo.HwArchA(_io__raw_arch, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.arch._fetch_instances()

        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            self._m_intel = self.arch.intel
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            self._m_smmuv3 = self.arch.smmuv3
            return getattr(self, '_m_smmuv3', None)


    class HwSmmuv3OfA(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwSmmuv3OfA, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.phys_addr = self._io.read_u8le()
            self.strtab_base = self._io.read_u8le()
            self.strtab_base_cfg = self._io.read_u8le()
            self.l1_strtab_lu_state = self._io.read_u8le()
            self.num_l2_tables = self._io.read_u4le()
            self.padding = self._io.read_u4le()
            self.l2_strtab_lu_states_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class HwSmmuv3OfV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwSmmuv3OfV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.phys_addr = self._io.read_u8le()
            self.strtab_base_cfg = self._io.read_u8le()
            self.l1_strtab_lu_state = self._io.read_u8le()
            self.l2_strtab_lu_states_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class HwV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.HdrV2(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()


    class HwV3(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwV3, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = self._io.read_u8le()
            self.intel = IommuLuo.HwIntel(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.intel._fetch_instances()


    class HwV4(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuo.HwV4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = IommuLuo.Hdr(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = self._io.read_u8le()
            self._raw_arch = self._io.read_bytes(88)
            _io__raw_arch = KaitaiStream(BytesIO(self._raw_arch))
            self.arch = IommuLuo.HwArchV4(_io__raw_arch, self, self._root)


        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            self.arch._fetch_instances()

        @property
        def intel(self):
            if hasattr(self, '_m_intel'):
                return self._m_intel

            self._m_intel = self.arch.intel
            return getattr(self, '_m_intel', None)

        @property
        def smmuv3(self):
            if hasattr(self, '_m_smmuv3'):
                return self._m_smmuv3

            self._m_smmuv3 = self.arch.smmuv3
            return getattr(self, '_m_smmuv3', None)
