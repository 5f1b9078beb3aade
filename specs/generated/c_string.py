# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class CString(KaitaiStruct):
    """A `char name[N]` member. Use it with an explicit `size`, so that it gets a
    stream of its own:

        - id: name
          type: c_string
          size: 64

    Names in an image are bytes that the producer's user space chose; no
    encoding is promised, and a hostile image may hold anything. Both views are
    therefore byte arrays; decode them (for display, and with control characters
    escaped) in the application.
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(CString, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.text = self._io.read_bytes_term(0, False, True, False)


    def _fetch_instances(self):
        pass
        _ = self.raw
        if hasattr(self, '_m_raw'):
            pass


    @property
    def is_terminated(self):
        """The kernel refuses names that fill the array without a NUL."""
        if hasattr(self, '_m_is_terminated'):
            return self._m_is_terminated

        self._m_is_terminated = len(self.text) < self._io.size()
        return getattr(self, '_m_is_terminated', None)

    @property
    def raw(self):
        """The whole array, with whatever follows the NUL."""
        if hasattr(self, '_m_raw'):
            return self._m_raw

        _pos = self._io.pos()
        self._io.seek(0)
        self._m_raw = self._io.read_bytes_full()
        self._io.seek(_pos)
        return getattr(self, '_m_raw', None)
