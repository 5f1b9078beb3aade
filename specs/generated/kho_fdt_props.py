# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoFdtProps(KaitaiStruct):
    """A property value cut out of an `fdt` is the stream here. The top-level type
    is the common case, a 64-bit integer in native order, that is little endian
    on the machines that have KHO. Only `/chosen` uses big-endian cells.

    | tree | node | property | type |
    |------|------|----------|------|
    | root, kho-v1 | / | compatible | kho_compatible |
    | root | / | preserved-memory-map | (top level) physical address |
    | root, kho-v1 | NAME | fdt | (top level) physical address of a tree |
    | root, kho-v2 and later | NAME | preserved-data | (top level) physical address |
    | root, kho-v3 and later | NAME | blob-size | (top level) bytes |
    | memblock | / | compatible | memblock_compatible |
    | memblock | REGION | compatible | reserve_mem_compatible |
    | memblock | REGION | start, size | (top level) |
    | LUO up to 7.1 | / | compatible | luo_compatible |
    | LUO up to 7.1 | / | liveupdate-number | (top level) |
    | LUO up to 7.1 | luo-session | luo-session-header | (top level) physical address |
    | LUO, luo-v2 | / | luo-abi-header | (top level) physical address of `luo::ser_v2` |
    | LUO 7.1 | luo-flb | luo-flb-header | (top level) physical address |
    | device tree | /chosen | linux,kho-fdt, linux,kho-scratch | chosen_range |

    The first radix-tree postings (2025-10) kept the strings `kho-v1` or `kho-v2`
    and used the property names `preserved-page-radix-tree` and
    `preserved-order-table` instead.

    .. seealso::
       Source - https://docs.kernel.org/core-api/kho/index.html
    """
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoFdtProps, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.value = self._io.read_u8le()


    def _fetch_instances(self):
        pass

    class ChosenRange(KaitaiStruct):
        """Address and size in big-endian cells, as many as the root node of the
        device tree says in `#address-cells` and `#size-cells` (1 or 2).
        """
        def __init__(self, num_address_cells, num_size_cells, _io, _parent=None, _root=None):
            super(KhoFdtProps.ChosenRange, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_address_cells = num_address_cells
            self.num_size_cells = num_size_cells
            self._read()

        def _read(self):
            self.check = self._io.read_bytes(0)
            _ = self.check
            if not  ((self.num_address_cells >= 1) and (self.num_address_cells <= 2) and (self.num_size_cells >= 1) and (self.num_size_cells <= 2)) :
                raise kaitaistruct.ValidationExprError(self.check, self._io, u"/types/chosen_range/seq/0")
            self.address_cells = []
            for i in range(self.num_address_cells):
                self.address_cells.append(self._io.read_u4be())

            self.size_cells = []
            for i in range(self.num_size_cells):
                self.size_cells.append(self._io.read_u4be())



        def _fetch_instances(self):
            pass
            for i in range(len(self.address_cells)):
                pass

            for i in range(len(self.size_cells)):
                pass


        @property
        def address(self):
            if hasattr(self, '_m_address'):
                return self._m_address

            self._m_address = (self.address_cells[0] if self.num_address_cells == 1 else self.address_cells[0] * 4294967296 + self.address_cells[1])
            return getattr(self, '_m_address', None)

        @property
        def size(self):
            if hasattr(self, '_m_size'):
                return self._m_size

            self._m_size = (self.size_cells[0] if self.num_size_cells == 1 else self.size_cells[0] * 4294967296 + self.size_cells[1])
            return getattr(self, '_m_size', None)


    class KhoCompatible(KaitaiStruct):
        """The kernel compares the whole string with its own, nothing else."""
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.KhoCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not  ((self.value == u"kho-v1") or (self.value == u"kho-v2") or (self.value == u"kho-v3") or (self.value == u"kho-v4") or (self.value == u"kho-v4;radix-v1") or (self.value == u"kho-v4;radix-v1;vmalloc-v1")) :
                raise kaitaistruct.ValidationNotAnyOfError(self.value, self._io, u"/types/kho_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class KhoTestCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.KhoTestCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not self.value == u"kho-test-v1":
                raise kaitaistruct.ValidationNotEqualError(u"kho-test-v1", self.value, self._io, u"/types/kho_test_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class LuoCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.LuoCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not  ((self.value == u"luo-v1") or (self.value == u"luo-v2")) :
                raise kaitaistruct.ValidationNotAnyOfError(self.value, self._io, u"/types/luo_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class LuoFlbCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.LuoFlbCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not self.value == u"luo-flb-v1":
                raise kaitaistruct.ValidationNotEqualError(u"luo-flb-v1", self.value, self._io, u"/types/luo_flb_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class LuoSessionCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.LuoSessionCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not  ((self.value == u"luo-session-v1") or (self.value == u"luo-session-v2")) :
                raise kaitaistruct.ValidationNotAnyOfError(self.value, self._io, u"/types/luo_session_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class MemblockCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.MemblockCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not self.value == u"memblock-v1":
                raise kaitaistruct.ValidationNotEqualError(u"memblock-v1", self.value, self._io, u"/types/memblock_compatible/seq/0")


        def _fetch_instances(self):
            pass


    class NativeU4(KaitaiStruct):
        """The 32-bit properties of the kho_test tree."""
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.NativeU4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = self._io.read_u4le()


        def _fetch_instances(self):
            pass


    class ReserveMemCompatible(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoFdtProps.ReserveMemCompatible, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.value = (self._io.read_bytes_term(0, False, True, True)).decode(u"ASCII")
            if not self.value == u"reserve-mem-v1":
                raise kaitaistruct.ValidationNotEqualError(u"reserve-mem-v1", self.value, self._io, u"/types/reserve_mem_compatible/seq/0")


        def _fetch_instances(self):
            pass
