# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import c_string


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class LiveupdateUapi(KaitaiStruct):
    """Not part of an image; given for tools that drive the device or trace its use.
    Type 0xba. Numbers on the device: create session 0x00, retrieve session 0x01;
    on a session: preserve fd 0x40, retrieve fd 0x41, finish 0x42, get name 0x43
    (Linux 7.2 and later). Each argument begins with its own size.

    The top-level type is that common beginning.

    .. seealso::
       Source - https://docs.kernel.org/userspace-api/liveupdate.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(LiveupdateUapi, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.size = self._io.read_u4le()


    def _fetch_instances(self):
        pass

    class CreateSession(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.CreateSession, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.fd = self._io.read_s4le()
            self._raw_name = self._io.read_bytes(64)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class Finish(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.Finish, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.reserved = self._io.read_u4le()


        def _fetch_instances(self):
            pass


    class GetName(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.GetName, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.reserved = self._io.read_u4le()
            self._raw_name = self._io.read_bytes(64)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class PreserveFd(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.PreserveFd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.fd = self._io.read_s4le()
            self.token = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class RetrieveFd(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.RetrieveFd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.fd = self._io.read_s4le()
            self.token = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class RetrieveSession(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(LiveupdateUapi.RetrieveSession, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.size = self._io.read_u4le()
            self.fd = self._io.read_s4le()
            self._raw_name = self._io.read_bytes(64)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()
