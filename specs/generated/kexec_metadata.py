# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import c_string


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KexecMetadata(KaitaiStruct):
    """Blob `kexec-metadata` (Linux 7.1 and later): who wrote the image, and how many
    kexecs there were before. 73 bytes, packed; a shorter blob or another version
    is ignored by the kernel with a warning.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KexecMetadata, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.version = self._io.read_u4le()
        if not self.version == 1:
            raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/seq/0")
        self._raw_previous_release = self._io.read_bytes(65)
        _io__raw_previous_release = KaitaiStream(BytesIO(self._raw_previous_release))
        self.previous_release = c_string.CString(_io__raw_previous_release)
        self.kexec_count = self._io.read_u4le()


    def _fetch_instances(self):
        pass
        self.previous_release._fetch_instances()
