# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import folio_entry
from . import kho_vmalloc


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class GuestMemfdLuo(KaitaiStruct):
    """File handler `guest_memfd_luo_v1`, development only."""
    def __init__(self, _io, _parent=None, _root=None):
        super(GuestMemfdLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.size = self._io.read_u8le()
        self.flags = self._io.read_u8le()
        self.nr_folios = self._io.read_u8le()
        self.vm_token = self._io.read_u8le()
        self.folios = kho_vmalloc.KhoVmalloc(self._io)


    def _fetch_instances(self):
        pass
        self.folios._fetch_instances()

    class FolioList(KaitaiStruct):
        def __init__(self, num_folios, _io, _parent=None, _root=None):
            super(GuestMemfdLuo.FolioList, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_folios = num_folios
            self._read()

        def _read(self):
            self.folios = []
            for i in range(self.num_folios):
                self.folios.append(folio_entry.FolioEntry(self._io))



        def _fetch_instances(self):
            pass
            for i in range(len(self.folios)):
                pass
                self.folios[i]._fetch_instances()
