# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class VfioPciLuo(KaitaiStruct):
    """What `data` of a LUO file points to for the handlers of vfio-pci. Never in a
    release up to Linux 7.3. All packed.

    | handler | bytes | type |
    |---------|-------|------|
    | vfio-v1 | 2 | core_device_rfc_v1_first |
    | vfio-v1 | 8235 | core_device_rfc_v1 |
    | vfio-pci-v1 | 4 | core_device_v1 |
    | vfio-pci-v1 | 5 | core_device_v1_reset |
    | vfio-pci-v1 | 9 | core_device_v1_iommufd |
    | vfio-pci-v1 | 6 | core_device_v1_dom32 (order of the members changed) |
    | vfio-pci-v2 | 7 | core_device_v2 (top level) |
    | vfio-pci-v2 | 11 | core_device_v2_iommufd |

    The size is not in the image. bdf = (bus << 8) | devfn.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(VfioPciLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = VfioPciLuo.CoreDeviceV2(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class CoreDeviceRfcV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceRfcV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.bdf = self._io.read_u2le()
            self.cfg_size = self._io.read_u4le()
            if not self.cfg_size <= 4096:
                raise kaitaistruct.ValidationGreaterThanError(4096, self.cfg_size, self._io, u"/types/core_device_rfc_v1/seq/1")
            self.pci_config_map = self._io.read_bytes(4096)
            self.vconfig = self._io.read_bytes(4096)
            self.rbar = []
            for i in range(7):
                self.rbar.append(self._io.read_u4le())

            self.reset_works = self._io.read_u1()
            self.pci_saved_state_phys = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            for i in range(len(self.rbar)):
                pass



    class CoreDeviceRfcV1First(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceRfcV1First, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.bdf = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class CoreDeviceV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.bdf = self._io.read_u2le()
            self.domain = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class CoreDeviceV1Dom32(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV1Dom32, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u4le()
            self.bdf = self._io.read_u2le()


        def _fetch_instances(self):
            pass


    class CoreDeviceV1Iommufd(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV1Iommufd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.bdf = self._io.read_u2le()
            self.domain = self._io.read_u2le()
            self.reset_works = self._io.read_u1()
            self.iommufd_ser = VfioPciLuo.IommufdLink(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.iommufd_ser._fetch_instances()


    class CoreDeviceV1Reset(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV1Reset, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.bdf = self._io.read_u2le()
            self.domain = self._io.read_u2le()
            self.reset_works = self._io.read_u1()


        def _fetch_instances(self):
            pass


    class CoreDeviceV2(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u4le()
            self.bdf = self._io.read_u2le()
            self.reset_works = self._io.read_u1()


        def _fetch_instances(self):
            pass


    class CoreDeviceV2Iommufd(KaitaiStruct):
        """Distribution backport."""
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.CoreDeviceV2Iommufd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain = self._io.read_u4le()
            self.bdf = self._io.read_u2le()
            self.reset_works = self._io.read_u1()
            self.iommufd_ser = VfioPciLuo.IommufdLink(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.iommufd_ser._fetch_instances()


    class IommufdLink(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.IommufdLink, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.token = self._io.read_u4le()


        def _fetch_instances(self):
            pass


    class SavedCap(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.SavedCap, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.cap_nr = self._io.read_u2le()
            self.cap_extended = self._io.read_u1()
            self.size = self._io.read_u4le()
            self.data = self._io.read_bytes(self.size)


        def _fetch_instances(self):
            pass


    class SavedState(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(VfioPciLuo.SavedState, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.config_space = []
            for i in range(16):
                self.config_space.append(self._io.read_u4le())

            self.cap = []
            i = 0
            while True:
                _ = VfioPciLuo.SavedCap(self._io, self, self._root)
                self.cap.append(_)
                if _.size == 0:
                    break
                i += 1


        def _fetch_instances(self):
            pass
            for i in range(len(self.config_space)):
                pass

            for i in range(len(self.cap)):
                pass
                self.cap[i]._fetch_instances()
