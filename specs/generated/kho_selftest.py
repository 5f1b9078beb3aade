# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import kho_vmalloc


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoSelftest(KaitaiStruct):
    """The blob `kho_test` is a device tree: root `compatible` is `kho-test-v1`
    (`kho_fdt_props::kho_test_compatible`) with `magic`; the node `data` has
    `nr_folios`, `csum` (native 32-bit) and `folios_info`.

    The top-level type is the value of `magic`.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoSelftest, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.magic = self._io.read_u4le()
        if not self.magic == 1263030049:
            raise kaitaistruct.ValidationNotEqualError(1263030049, self.magic, self._io, u"/seq/0")


    def _fetch_instances(self):
        pass

    class Folio(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(KhoSelftest.Folio, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.entry = self._io.read_u8le()


        def _fetch_instances(self):
            pass

        @property
        def order(self):
            if hasattr(self, '_m_order'):
                return self._m_order

            self._m_order = (self.entry % self.page_size)
            return getattr(self, '_m_order', None)

        @property
        def phys(self):
            if hasattr(self, '_m_phys'):
                return self._m_phys

            self._m_phys = (self.entry - self.order)
            return getattr(self, '_m_phys', None)


    class FoliosInfo(KaitaiStruct):
        """Linux 6.18 and later: descriptor of a vmalloc area that holds one 64-bit
        `folio` for each of nr_folios.
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoSelftest.FoliosInfo, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.area = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.area._fetch_instances()


    class FoliosInfoInline(KaitaiStruct):
        """Linux 6.16 and 6.17: the array itself is the property."""
        def __init__(self, page_size, num_folios, _io, _parent=None, _root=None):
            super(KhoSelftest.FoliosInfoInline, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_folios = num_folios
            self._read()

        def _read(self):
            self.folios = []
            for i in range(self.num_folios):
                self.folios.append(KhoSelftest.Folio(self.page_size, self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.folios)):
                pass
                self.folios[i]._fetch_instances()
