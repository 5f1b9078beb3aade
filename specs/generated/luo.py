# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import kho_block
from . import c_string


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Luo(KaitaiStruct):
    """The KHO blob `LUO`. Three forms of root:

    * Linux 6.19 to 7.1: a device tree (`fdt`, told by its magic), whose
      properties give the address of a `session_array` and, from 7.1 on, of a
      `flb_page`;
    * Linux 7.2 and 7.3, and development trees: `ser` (the top-level type is the
      one of the releases, with an 8-byte string);
    * feature development tree: `ser_features`, with no string at all.

    | root string | sessions | files of a session |
    |-------------|----------|--------------------|
    | luo-v1 (tree) | session_array | file_array |
    | luo-v2 (tree and `ser_v2`) | session_array | file_array |
    | luo-v3 | session_array | file_array |
    | luo-v3-kho-block-v1 | session_block list | file_array |
    | luo-v4 | session_block list | file_array |
    | luo-v5 | session_block list | file_block list |
    | luo-v5;block-v1 | session_block list | file_block list |
    | (features) | session_block list | file_block list |

    .. seealso::
       Source - https://docs.kernel.org/core-api/liveupdate.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(Luo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.ser = Luo.Ser(8, self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.ser._fetch_instances()

    class FeatureEntry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.FeatureEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_name = self._io.read_bytes(48)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)
            self.feat_bytes = self._io.read_u4le()
            self.reserved = self._io.read_u4le()
            self.supp = self._io.read_u8le()
            self.req = self._io.read_u8le()
            self.active = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class FeatureHdr(KaitaiStruct):
        """Bits of LUO: 1 number, 2 sessions, 4 FLBs. Bits of memfd: 1 seals,
        2 folios.
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.FeatureHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.supp = self._io.read_u8le()
            self.req = self._io.read_u8le()
            self.active = self._io.read_u8le()
            self.reserved = []
            for i in range(13):
                self.reserved.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.reserved)):
                pass



    class FeatureSection(KaitaiStruct):
        """Section `.liveupdate_features` of a kernel image, whole."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.FeatureSection, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.hdr = Luo.VerHdr(self._io, self, self._root)
            self.entries = []
            i = 0
            while not self._io.is_eof():
                self.entries.append(Luo.FeatureEntry(self._io, self, self._root))
                i += 1



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class File(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.File, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_compatible = self._io.read_bytes(48)
            _io__raw_compatible = KaitaiStream(BytesIO(self._raw_compatible))
            self.compatible = c_string.CString(_io__raw_compatible)
            self.data = self._io.read_u8le()
            self.token = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.compatible._fetch_instances()


    class FileArray(KaitaiStruct):
        """Contiguous, 2 pages; the count is in the session."""
        def __init__(self, page_size, num_files, _io, _parent=None, _root=None):
            super(Luo.FileArray, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self.num_files = num_files
            self._read()

        def _read(self):
            self.check = self._io.read_bytes(0)
            _ = self.check
            if not self.num_files <= (2 * self.page_size) // 64:
                raise kaitaistruct.ValidationExprError(self.check, self._io, u"/types/file_array/seq/0")
            self.files = []
            for i in range(self.num_files):
                self.files.append(Luo.File(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.files)):
                pass
                self.files[i]._fetch_instances()



    class FileBlock(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(Luo.FileBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = kho_block.KhoBlock.Header((self.page_size - 16) // 64, self._io)
            self.files = []
            for i in range(self.hdr.count):
                self.files.append(Luo.File(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.files)):
                pass
                self.files[i]._fetch_instances()



    class FileFeatures(KaitaiStruct):
        """As `file`, with the name of the handler (`memfd`) and no version in it."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.FileFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_name = self._io.read_bytes(48)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)
            self.data = self._io.read_u8le()
            self.token = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class FileSet(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.FileSet, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.files = self._io.read_u8le()
            self.count = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Flb(KaitaiStruct):
        """File-Lifecycle-Bound global data."""
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.Flb, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_name = self._io.read_bytes(48)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)
            self.data = self._io.read_u8le()
            self.count = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class FlbHeader(KaitaiStruct):
        def __init__(self, capacity, _io, _parent=None, _root=None):
            super(Luo.FlbHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self._read()

        def _read(self):
            self.pgcnt = self._io.read_u8le()
            self.count = self._io.read_u8le()
            if not self.count <= self.capacity:
                raise kaitaistruct.ValidationGreaterThanError(self.capacity, self.count, self._io, u"/types/flb_header/seq/1")


        def _fetch_instances(self):
            pass


    class FlbPage(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(Luo.FlbPage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = Luo.FlbHeader((self.page_size - 16) // 64, self._io, self, self._root)
            self.flbs = []
            for i in range(self.hdr.count):
                self.flbs.append(Luo.Flb(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.flbs)):
                pass
                self.flbs[i]._fetch_instances()



    class Ser(KaitaiStruct):
        """The string is padded with NULs to a multiple of 8, and a longer string
        moves everything behind it.
        """
        def __init__(self, len_compatible, _io, _parent=None, _root=None):
            super(Luo.Ser, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.len_compatible = len_compatible
            self._read()

        def _read(self):
            self.compatible = (KaitaiStream.bytes_terminate(self._io.read_bytes(self.len_compatible), 0, False)).decode(u"ASCII")
            if not  ((self.compatible == u"luo-v3") or (self.compatible == u"luo-v4") or (self.compatible == u"luo-v5") or (self.compatible == u"luo-v5;block-v1") or (self.compatible == u"luo-v3-kho-block-v1")) :
                raise kaitaistruct.ValidationNotAnyOfError(self.compatible, self._io, u"/types/ser/seq/0")
            self.liveupdate_num = self._io.read_u8le()
            self.sessions_pa = self._io.read_u8le()
            self.flbs_pa = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class SerFeatures(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.SerFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.features = Luo.FeatureHdr(self._io, self, self._root)
            self.liveupdate_num = self._io.read_u8le()
            self.sessions_pa = self._io.read_u8le()
            self.flbs_pa = self._io.read_u8le()


        def _fetch_instances(self):
            pass
            self.features._fetch_instances()


    class SerV2(KaitaiStruct):
        """What `luo-abi-header` of the tree of `luo-v2` points to: `ser` without its
        string, which is in the tree.
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.SerV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.liveupdate_num = self._io.read_u8le()
            self.sessions_pa = self._io.read_u8le()
            self.flbs_pa = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Session(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.Session, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_name = self._io.read_bytes(64)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)
            self.file_set_ser = Luo.FileSet(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()
            self.file_set_ser._fetch_instances()


    class SessionArray(KaitaiStruct):
        """Contiguous, 16 pages."""
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(Luo.SessionArray, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = Luo.SessionHeader((16 * self.page_size - 8) // 80, self._io, self, self._root)
            self.sessions = []
            for i in range(self.hdr.count):
                self.sessions.append(Luo.Session(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.sessions)):
                pass
                self.sessions[i]._fetch_instances()



    class SessionArrayNameOnly(KaitaiStruct):
        """`luo-session-v1`, a development step before 6.19. Contiguous."""
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(Luo.SessionArrayNameOnly, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = Luo.SessionHeader((16 * self.page_size - 8) // 64, self._io, self, self._root)
            self.sessions = []
            for i in range(self.hdr.count):
                self.sessions.append(Luo.SessionNameOnly(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.sessions)):
                pass
                self.sessions[i]._fetch_instances()



    class SessionBlock(KaitaiStruct):
        def __init__(self, page_size, _io, _parent=None, _root=None):
            super(Luo.SessionBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.page_size = page_size
            self._read()

        def _read(self):
            self.hdr = kho_block.KhoBlock.Header((self.page_size - 16) // 80, self._io)
            self.sessions = []
            for i in range(self.hdr.count):
                self.sessions.append(Luo.Session(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            self.hdr._fetch_instances()
            for i in range(len(self.sessions)):
                pass
                self.sessions[i]._fetch_instances()



    class SessionHeader(KaitaiStruct):
        def __init__(self, capacity, _io, _parent=None, _root=None):
            super(Luo.SessionHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.capacity = capacity
            self._read()

        def _read(self):
            self.count = self._io.read_u8le()
            if not self.count <= self.capacity:
                raise kaitaistruct.ValidationGreaterThanError(self.capacity, self.count, self._io, u"/types/session_header/seq/0")


        def _fetch_instances(self):
            pass


    class SessionNameOnly(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.SessionNameOnly, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self._raw_name = self._io.read_bytes(64)
            _io__raw_name = KaitaiStream(BytesIO(self._raw_name))
            self.name = c_string.CString(_io__raw_name)


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class VerHdr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Luo.VerHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_u4le()
            if not self.magic == 1280726352:
                raise kaitaistruct.ValidationNotEqualError(1280726352, self.magic, self._io, u"/types/ver_hdr/seq/0")
            self.version = self._io.read_u4le()
            if not self.version == 1:
                raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/types/ver_hdr/seq/1")


        def _fetch_instances(self):
            pass
