# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class IommufdLuo(KaitaiStruct):
    """What `data` of a LUO file points to for handler `iommufd-v1`, which names
    three layouts. Never in a release up to Linux 7.3.

    | posting | type |
    |---------|------|
    | 2025-09 (RFC v1) | placeholder |
    | 2025-12 (RFC v2), 2026-02 (v1) | iommufd_v1 |
    | 2026-04 (v2) and later | iommufd (top level) |

    In the last form bytes 4 to 7 are zero. Nested HWPTs are not in the image.

    .. seealso::
       Source - https://docs.kernel.org/userspace-api/iommufd.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(IommufdLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = IommufdLuo.Iommufd(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class Hwpt(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.Hwpt, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.domain_data = self._io.read_u8le()
            self.token = self._io.read_u8le()
            self.reclaimed = self._io.read_u1()
            self.padding = self._io.read_bytes(7)


        def _fetch_instances(self):
            pass


    class HwptSetPreserve(KaitaiStruct):
        """Argument of the ioctl of the 2026-02 posting (number 0x95), not in the image."""
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.HwptSetPreserve, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.hwpt_id = self._io.read_u4le()
            self.hwpt_token = self._io.read_u4le()


        def _fetch_instances(self):
            pass


    class HwptV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.HwptV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.token = self._io.read_u4le()
            self.domain_data = self._io.read_u8le()
            self.reclaimed = self._io.read_u1()


        def _fetch_instances(self):
            pass


    class Iommufd(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.Iommufd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_hwpts = self._io.read_u8le()
            if not self.nr_hwpts <= 4294967295:
                raise kaitaistruct.ValidationGreaterThanError(4294967295, self.nr_hwpts, self._io, u"/types/iommufd/seq/0")
            self.hwpt_array = []
            for i in range(self.nr_hwpts):
                self.hwpt_array.append(IommufdLuo.Hwpt(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.hwpt_array)):
                pass
                self.hwpt_array[i]._fetch_instances()



    class IommufdV1(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.IommufdV1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_hwpts = self._io.read_u4le()
            self.hwpts = []
            for i in range(self.nr_hwpts):
                self.hwpts.append(IommufdLuo.HwptV1(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.hwpts)):
                pass
                self.hwpts[i]._fetch_instances()



    class MarkPreserve(KaitaiStruct):
        """Argument of the later ioctl, not in the image."""
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.MarkPreserve, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.hwpt_id = self._io.read_u4le()
            self.hwpt_token = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Placeholder(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(IommufdLuo.Placeholder, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.folio_lu = self._io.read_u8le()


        def _fetch_instances(self):
            pass
