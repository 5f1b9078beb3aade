# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import kho_block
from . import c_string


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class PciLuo(KaitaiStruct):
    """FLB data of the PCI core. Never in a release up to Linux 7.3.

    | string | posting | type |
    |--------|---------|------|
    | pci (subsystem) | 2025-07 | ser_rfc |
    | pci (subsystem) | 2025-09 | ser_rfc_drvname |
    | pci-v1 | 2025-11 | ser_v1_a |
    | pci-v1 | 2026-01 | ser_v1_b |
    | pci-v1 | 2026-03 | ser_v1_c |
    | pci-v1, pci-v2 | 2026-04 | ser_u64 |
    | pci-v1, pci-v2 | 2026-05 | ser_u32 |
    | pci + version word | later | ser (top level) |

    `pci-v1` names five layouts and `pci-v2` two. With 64-bit counts, bytes 4 to 7
    are zero; with 32-bit counts they are nr_devices. Order of the devices is not
    to be relied on.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(PciLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = PciLuo.Ser(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class Device(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.Device, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u4le()
            self.bdf = self._io.read_u2le()
            self.refcount = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class DeviceBlock(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(PciLuo.DeviceBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = kho_block.KhoBlock.Header((self.page_size - 16) // 8, self._io)
            self.devices = []
            for i in range(self.hdr.count):
                self.devices.append(PciLuo.Device(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()



    class DeviceRfc(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.DeviceRfc, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.path = self._io.read_u4le()
            self.flags = self._io.read_u4le()
            self.driver_data = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class DeviceRfcDrvname(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.DeviceRfcDrvname, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.path = self._io.read_u4le()
            self.flags = self._io.read_u4le()
            self._raw_driver_name = self._io.read_bytes(63)
            _io__raw_driver_name = KaitaiStream(BytesIO(self._raw_driver_name))
            self.driver_name = c_string.CString(_io__raw_driver_name)
            self.padding = self._io.read_bytes(1)
            self.driver_data = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.driver_name._fetch_instances()


    class DeviceV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.DeviceV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u2le()
            self.bdf = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class DeviceV1C(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.DeviceV1C, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u4le()
            self.bdf = self._io.read_u2le()
            self.reserved = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class Ser(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.Ser, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.version = self._io.read_u4le()
            if not  ((self.version == 1) or (self.version == 2)) :
                raise kaitaistruct.ValidationNotAnyOfError(self.version, self._io, u"/types/ser/seq/0")
            self.nr_devices = self._io.read_u4le()
            self.devices = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class SerRfc(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerRfc, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.count = self._io.read_u4le()
            self.padding = self._io.read_bytes(4)
            self.devs = []
            for i in range(self.count):
                self.devs.append(PciLuo.DeviceRfc(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devs)):
                pass
                self.devs[i]._fetch_instances()



    class SerRfcDrvname(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerRfcDrvname, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.count = self._io.read_u4le()
            self.padding = self._io.read_bytes(4)
            self.devs = []
            for i in range(self.count):
                self.devs.append(PciLuo.DeviceRfcDrvname(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devs)):
                pass
                self.devs[i]._fetch_instances()



    class SerU32(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerU32, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.max_nr_devices = self._io.read_u4le()
            self.nr_devices = self._io.read_u4le()
            if not self.nr_devices <= self.max_nr_devices:
                raise kaitaistruct.ValidationGreaterThanError(self.max_nr_devices, self.nr_devices, self._io, u"/types/ser_u32/seq/1")
            self.devices = []
            for i in range(self.nr_devices):
                self.devices.append(PciLuo.Device(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()

            _ = self.slots
            if hasattr(self, '_m_slots'):
                pass
                for i in range(len(self._m_slots)):
                    pass
                    self._m_slots[i]._fetch_instances()



        @property
        def slots(self):
            """The whole array; slots with refcount 0 are free."""
            if hasattr(self, '_m_slots'):
                return self._m_slots

            _pos = self._io.pos()
            self._io.seek(8)
            self._m_slots = []
            for i in range(self.max_nr_devices):
                self._m_slots.append(PciLuo.Device(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_slots', None)


    class SerU64(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerU64, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.max_nr_devices = self._io.read_u8le()
            if not self.max_nr_devices <= 4294967295:
                raise kaitaistruct.ValidationGreaterThanError(4294967295, self.max_nr_devices, self._io, u"/types/ser_u64/seq/0")
            self.nr_devices = self._io.read_u8le()
            if not self.nr_devices <= self.max_nr_devices:
                raise kaitaistruct.ValidationGreaterThanError(self.max_nr_devices, self.nr_devices, self._io, u"/types/ser_u64/seq/1")
            self.devices = []
            for i in range(self.nr_devices):
                self.devices.append(PciLuo.Device(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()

            _ = self.slots
            if hasattr(self, '_m_slots'):
                pass
                for i in range(len(self._m_slots)):
                    pass
                    self._m_slots[i]._fetch_instances()



        @property
        def slots(self):
            """The whole array; slots with refcount 0 are free."""
            if hasattr(self, '_m_slots'):
                return self._m_slots

            _pos = self._io.pos()
            self._io.seek(16)
            self._m_slots = []
            for i in range(self.max_nr_devices):
                self._m_slots.append(PciLuo.Device(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_slots', None)


    class SerV1A(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerV1A, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_devices = self._io.read_u8le()
            if not self.nr_devices <= 4294967295:
                raise kaitaistruct.ValidationGreaterThanError(4294967295, self.nr_devices, self._io, u"/types/ser_v1_a/seq/0")
            self.devices = []
            for i in range(self.nr_devices):
                self.devices.append(PciLuo.DeviceV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()



    class SerV1B(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerV1B, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.max_nr_devices = self._io.read_u8le()
            if not self.max_nr_devices <= 4294967295:
                raise kaitaistruct.ValidationGreaterThanError(4294967295, self.max_nr_devices, self._io, u"/types/ser_v1_b/seq/0")
            self.nr_devices = self._io.read_u8le()
            if not self.nr_devices <= self.max_nr_devices:
                raise kaitaistruct.ValidationGreaterThanError(self.max_nr_devices, self.nr_devices, self._io, u"/types/ser_v1_b/seq/1")
            self.devices = []
            for i in range(self.nr_devices):
                self.devices.append(PciLuo.DeviceV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()



    class SerV1C(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(PciLuo.SerV1C, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.max_nr_devices = self._io.read_u8le()
            if not self.max_nr_devices <= 4294967295:
                raise kaitaistruct.ValidationGreaterThanError(4294967295, self.max_nr_devices, self._io, u"/types/ser_v1_c/seq/0")
            self.nr_devices = self._io.read_u8le()
            if not self.nr_devices <= self.max_nr_devices:
                raise kaitaistruct.ValidationGreaterThanError(self.max_nr_devices, self.nr_devices, self._io, u"/types/ser_v1_c/seq/1")
            self.devices = []
            for i in range(self.nr_devices):
                self.devices.append(PciLuo.DeviceV1C(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()
