# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class IommuLuoRfc(KaitaiStruct):
    """FLB data of `iommu-v1`: RFC v2 (2025-12) and v1 (2026-02); v1 in two states,
    without and with the VT-d members of the device. Development only. For what
    came later see `iommu_luo`.

    | posting | hw | domain | device |
    |---------|----|--------|--------|
    | RFC v2 | 48 | 41 | 53 |
    | v1, part of the series | 37 | 33 | 49 |
    | v1 | 37 | 33 | 65 |

    The counts are in the root (`flb`, top level) and include deleted objects:
    object i of a chain is in page i / capacity, slot i % capacity. The count in
    the header of a page is not what the kernel walks by. The array types here
    therefore take the number of objects to read from their page.

    RFC v2 leaves some structs unpacked inside packed ones, which puts padding in
    the middle of the device and of the hw object.
    """

    class IommuType(IntEnum):
        invalid = 0
        intel = 1
    def __init__(self, _io, _parent=None, _root=None):
        super(IommuLuoRfc, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.flb = IommuLuoRfc.Flb(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.flb._fetch_instances()

    class DevMapRfcV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DevMapRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.did = self._io.read_u4le()
            self.padding = self._io.read_bytes(4)
            self.domain_phys = self._io.read_u8le()
            self.iommu_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DevMapV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DevMapV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.did = self._io.read_u4le()
            self.domain_phys = self._io.read_u8le()
            self.iommu_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceIntelV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DeviceIntelV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.pasid_table = self._io.read_u8le()
            self.max_pasid = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceRfcV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DeviceRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.devid = self._io.read_u4le()
            self.pci_domain = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuoRfc.DevMapRfcV2(self._io, self, self._root)
            self.type = KaitaiStream.resolve_enum(IommuLuoRfc.IommuType, self._io.read_u4le())


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()
            self.domain_iommu_ser._fetch_instances()


    class DeviceV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DeviceV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.devid = self._io.read_u4le()
            self.pci_domain = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuoRfc.DevMapV1(self._io, self, self._root)
            self.type = KaitaiStream.resolve_enum(IommuLuoRfc.IommuType, self._io.read_u4le())
            self.intel = IommuLuoRfc.DeviceIntelV1(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()
            self.domain_iommu_ser._fetch_instances()
            self.intel._fetch_instances()


    class DeviceV1Partial(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DeviceV1Partial, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.devid = self._io.read_u4le()
            self.pci_domain = self._io.read_u4le()
            self.domain_iommu_ser = IommuLuoRfc.DevMapV1(self._io, self, self._root)
            self.type = KaitaiStream.resolve_enum(IommuLuoRfc.IommuType, self._io.read_u4le())


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()
            self.domain_iommu_ser._fetch_instances()


    class DevicesPageRfcV2(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DevicesPageRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.devices = []
            for i in range(self.num_objects):
                self.devices.append(IommuLuoRfc.DeviceRfcV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 53
            return getattr(self, '_m_capacity', None)


    class DevicesPageV1(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DevicesPageV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.devices = []
            for i in range(self.num_objects):
                self.devices.append(IommuLuoRfc.DeviceV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 65
            return getattr(self, '_m_capacity', None)


    class DevicesPageV1Partial(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DevicesPageV1Partial, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.devices = []
            for i in range(self.num_objects):
                self.devices.append(IommuLuoRfc.DeviceV1Partial(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 49
            return getattr(self, '_m_capacity', None)


    class DomainRfcV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DomainRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.top_table = self._io.read_u8le()
            self.top_level = self._io.read_u8le()
            self.attach_count = self._io.read_u8le()
            self.restored_domain = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()


    class DomainV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DomainV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.top_table = self._io.read_u8le()
            self.top_level = self._io.read_u8le()
            self.restored_domain = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()


    class DomainsPageRfcV2(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DomainsPageRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.iommu_domains = []
            for i in range(self.num_objects):
                self.iommu_domains.append(IommuLuoRfc.DomainRfcV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.iommu_domains)):
                pass
                self.iommu_domains[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 41
            return getattr(self, '_m_capacity', None)


    class DomainsPageV1(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.DomainsPageV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.iommu_domains = []
            for i in range(self.num_objects):
                self.iommu_domains.append(IommuLuoRfc.DomainV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.iommu_domains)):
                pass
                self.iommu_domains[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 33
            return getattr(self, '_m_capacity', None)


    class Flb(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.Flb, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.iommus_phys = self._io.read_u8le()
            self.nr_iommus = self._io.read_u8le()
            self.iommu_domains_phys = self._io.read_u8le()
            self.nr_domains = self._io.read_u8le()
            self.devices_phys = self._io.read_u8le()
            self.nr_devices = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class IntelIommu(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.IntelIommu, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.phys_addr = self._io.read_u8le()
            self.root_table = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class IommuRfcV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.IommuRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.padding = self._io.read_bytes(7)
            self.token = self._io.read_u8le()
            self.type = KaitaiStream.resolve_enum(IommuLuoRfc.IommuType, self._io.read_u4le())
            self.intel = IommuLuoRfc.IntelIommu(self._io, self, self._root)
            self.tail_padding = self._io.read_bytes(4)


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()
            self.intel._fetch_instances()


    class IommuV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.IommuV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.obj = IommuLuoRfc.Obj(self._io, self, self._root)
            self.token = self._io.read_u8le()
            self.type = KaitaiStream.resolve_enum(IommuLuoRfc.IommuType, self._io.read_u4le())
            self.intel = IommuLuoRfc.IntelIommu(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.obj._fetch_instances()
            self.intel._fetch_instances()


    class IommusPageRfcV2(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.IommusPageRfcV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.iommus = []
            for i in range(self.num_objects):
                self.iommus.append(IommuLuoRfc.IommuRfcV2(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.iommus)):
                pass
                self.iommus[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 48
            return getattr(self, '_m_capacity', None)


    class IommusPageV1(KaitaiStruct):
        def __init__(self, page_size, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.IommusPageV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.objs = IommuLuoRfc.Objs(self.capacity, self.num_objects, self._io, self, self._root)
            self.iommus = []
            for i in range(self.num_objects):
                self.iommus.append(IommuLuoRfc.IommuV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.objs._fetch_instances()
            for i in range(len(self.iommus)):
                pass
                self.iommus[i]._fetch_instances()


        @property
        def capacity(self):
            if hasattr(self, '_m_capacity'):
                return self._m_capacity

            self._m_capacity = (self.page_size - 16) // 37
            return getattr(self, '_m_capacity', None)


    class Obj(KaitaiStruct):
        """Nine bytes; the last bit-field group takes only the byte it needs."""
        def __init__(self, _io, _parent=None, _root=None):
            super(IommuLuoRfc.Obj, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.idx = self._io.read_u4le()
            self.ref_count = self._io.read_u4le()
            self.deleted = self._io.read_bits_int_le(1) != 0
            self.incoming = self._io.read_bits_int_le(1) != 0
            self.unused = self._io.read_bits_int_le(6)


        def _fetch_instances(self):
            pass


    class Objs(KaitaiStruct):
        def __init__(self, capacity, num_objects, _io, _parent=None, _root=None):
            super(IommuLuoRfc.Objs, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self.num_objects = num_objects
            self._read()

        def _read(self):
            self.check = self._io.read_bytes(0)
            _ = self.check
            if not self.num_objects <= self.capacity:
                raise kaitaistruct.ValidationExprError(self.check, self._io, u"/types/objs/seq/0")
            self.next_objs = self._io.read_u8le()
            self.nr_objs = self._io.read_u8le()


        def _fetch_instances(self):
            pass
