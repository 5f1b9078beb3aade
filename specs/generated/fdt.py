# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Fdt(KaitaiStruct):
    """The container of the root of Kexec HandOver (KHO), of the `memblock` and
    `kho_test` blobs, of LUO state up to Linux 7.1, and of the device tree that
    arm64 kernels are booted with.

    The framing is big endian, as everywhere. The *values* that KHO, LUO and
    memblock put into properties are not: they are 64-bit integers in the native
    order of the machine (see `kho_fdt_props`).

    The structure block is given as the flat list of its tokens; nesting follows
    from begin_node and end_node. The list ends with the token `end`; a block
    without it is refused.

    .. seealso::
       Source - https://devicetree-specification.readthedocs.io/en/stable/flattened-format.html


    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """

    class TokenKind(IntEnum):
        begin_node = 1
        end_node = 2
        prop = 3
        nop = 4
        end = 9
    def __init__(self, _io, _parent=None, _root=None):
        super(Fdt, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.magic = self._io.read_bytes(4)
        if not self.magic == b"\xD0\x0D\xFE\xED":
            raise kaitaistruct.ValidationNotEqualError(b"\xD0\x0D\xFE\xED", self.magic, self._io, u"/seq/0")
        self.totalsize = self._io.read_u4be()
        if not self.totalsize >= 40:
            raise kaitaistruct.ValidationLessThanError(40, self.totalsize, self._io, u"/seq/1")
        self.off_dt_struct = self._io.read_u4be()
        self.off_dt_strings = self._io.read_u4be()
        self.off_mem_rsvmap = self._io.read_u4be()
        self.version = self._io.read_u4be()
        if not self.version >= 16:
            raise kaitaistruct.ValidationLessThanError(16, self.version, self._io, u"/seq/5")
        self.last_comp_version = self._io.read_u4be()
        if not self.last_comp_version <= 17:
            raise kaitaistruct.ValidationGreaterThanError(17, self.last_comp_version, self._io, u"/seq/6")
        self.boot_cpuid_phys = self._io.read_u4be()
        self.size_dt_strings = self._io.read_u4be()
        if self.version >= 17:
            pass
            self.size_dt_struct = self._io.read_u4be()



    def _fetch_instances(self):
        pass
        if self.version >= 17:
            pass

        _ = self.mem_rsvmap
        if hasattr(self, '_m_mem_rsvmap'):
            pass
            for i in range(len(self._m_mem_rsvmap)):
                pass
                self._m_mem_rsvmap[i]._fetch_instances()


        _ = self.strings
        if hasattr(self, '_m_strings'):
            pass
            self._m_strings._fetch_instances()

        _ = self.structure
        if hasattr(self, '_m_structure'):
            pass
            self._m_structure._fetch_instances()


    class ReserveEntry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Fdt.ReserveEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.address = self._io.read_u8be()
            self.size = self._io.read_u8be()


        def _fetch_instances(self):
            pass


    class StringsBlock(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Fdt.StringsBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.raw = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass


    class StructBlock(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Fdt.StructBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.tokens = []
            i = 0
            while True:
                _ = Fdt.Token(self._io, self, self._root)
                self.tokens.append(_)
                if _.kind == Fdt.TokenKind.end:
                    break
                i += 1


        def _fetch_instances(self):
            pass
            for i in range(len(self.tokens)):
                pass
                self.tokens[i]._fetch_instances()



    class Token(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Fdt.Token, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.kind = KaitaiStream.resolve_enum(Fdt.TokenKind, self._io.read_u4be())
            if not  ((self.kind == Fdt.TokenKind.begin_node) or (self.kind == Fdt.TokenKind.end_node) or (self.kind == Fdt.TokenKind.prop) or (self.kind == Fdt.TokenKind.nop) or (self.kind == Fdt.TokenKind.end)) :
                raise kaitaistruct.ValidationNotAnyOfError(self.kind, self._io, u"/types/token/seq/0")
            if self.kind == Fdt.TokenKind.begin_node:
                pass
                self.node_name = self._io.read_bytes_term(0, False, True, True)

            if self.kind == Fdt.TokenKind.prop:
                pass
                self.len_value = self._io.read_u4be()

            if self.kind == Fdt.TokenKind.prop:
                pass
                self.nameoff = self._io.read_u4be()

            if self.kind == Fdt.TokenKind.prop:
                pass
                self.value = self._io.read_bytes(self.len_value)

            self.padding = self._io.read_bytes((4 - self._io.pos() % 4) % 4)


        def _fetch_instances(self):
            pass
            if self.kind == Fdt.TokenKind.begin_node:
                pass

            if self.kind == Fdt.TokenKind.prop:
                pass

            if self.kind == Fdt.TokenKind.prop:
                pass

            if self.kind == Fdt.TokenKind.prop:
                pass

            _ = self.prop_name
            if hasattr(self, '_m_prop_name'):
                pass


        @property
        def prop_name(self):
            if hasattr(self, '_m_prop_name'):
                return self._m_prop_name

            if self.kind == Fdt.TokenKind.prop:
                pass
                io = self._root.strings._io
                _pos = io.pos()
                io.seek(self.nameoff)
                self._m_prop_name = io.read_bytes_term(0, False, True, True)
                io.seek(_pos)

            return getattr(self, '_m_prop_name', None)


    @property
    def len_struct(self):
        if hasattr(self, '_m_len_struct'):
            return self._m_len_struct

        self._m_len_struct = (self.size_dt_struct if self.version >= 17 else self.totalsize - self.off_dt_struct)
        return getattr(self, '_m_len_struct', None)

    @property
    def mem_rsvmap(self):
        """Memory reservation block with its all-zero terminator."""
        if hasattr(self, '_m_mem_rsvmap'):
            return self._m_mem_rsvmap

        _pos = self._io.pos()
        self._io.seek(self.off_mem_rsvmap)
        self._m_mem_rsvmap = []
        i = 0
        while True:
            _ = Fdt.ReserveEntry(self._io, self, self._root)
            self._m_mem_rsvmap.append(_)
            if  ((_.address == 0) and (_.size == 0)) :
                break
            i += 1
        self._io.seek(_pos)
        return getattr(self, '_m_mem_rsvmap', None)

    @property
    def strings(self):
        if hasattr(self, '_m_strings'):
            return self._m_strings

        _pos = self._io.pos()
        self._io.seek(self.off_dt_strings)
        self._raw__m_strings = self._io.read_bytes(self.size_dt_strings)
        _io__raw__m_strings = KaitaiStream(BytesIO(self._raw__m_strings))
        self._m_strings = Fdt.StringsBlock(_io__raw__m_strings, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_strings', None)

    @property
    def structure(self):
        if hasattr(self, '_m_structure'):
            return self._m_structure

        _pos = self._io.pos()
        self._io.seek(self.off_dt_struct)
        self._raw__m_structure = self._io.read_bytes(self.len_struct)
        _io__raw__m_structure = KaitaiStream(BytesIO(self._raw__m_structure))
        self._m_structure = Fdt.StructBlock(_io__raw__m_structure, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_structure', None)
