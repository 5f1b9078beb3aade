# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KhoBoot(KaitaiStruct):
    """How an x86 kernel is told where the KHO root is: one node of the list that
    starts at `boot_params.hdr.setup_data`, of type 10, holding `kho_data`.
    Unchanged from Linux 6.16 to 7.3. Device-tree machines use two properties of
    `/chosen` instead (`kho_fdt_props::chosen_range`).

    The top-level type is the whole node.

    .. seealso::
       Source - https://docs.kernel.org/arch/x86/boot.html
    """

    class SetupType(IntEnum):
        none = 0
        e820_ext = 1
        dtb = 2
        pci = 3
        efi = 4
        apple_properties = 5
        jailhouse = 6
        cc_blob = 7
        ima = 8
        rng_seed = 9
        kexec_kho = 10
    def __init__(self, _io, _parent=None, _root=None):
        super(KhoBoot, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.hdr = KhoBoot.SetupDataHdr(self._io, self, self._root)
        _ = self.hdr
        if not  ((_.type == KhoBoot.SetupType.kexec_kho) and (_.len == 32)) :
            raise kaitaistruct.ValidationExprError(self.hdr, self._io, u"/seq/0")
        self.data = KhoBoot.KhoData(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.hdr._fetch_instances()
        self.data._fetch_instances()

    class KhoData(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoBoot.KhoData, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.fdt_addr = self._io.read_u8le()
            self.fdt_size = self._io.read_u8le()
            self.scratch_addr = self._io.read_u8le()
            self.scratch_size = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class KhoScratch(KaitaiStruct):
        """A range of memory in which the next kernel may live until it knows what
        is preserved. Entry 0 is low memory, entry 1 global (its size is 0 where
        all memory is low), then one per NUMA node.
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoBoot.KhoScratch, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.addr = self._io.read_u8le()
            self.size = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class ScratchArray(KaitaiStruct):
        def __init__(self, len_array, _io, _parent=None, _root=None):
            super(KhoBoot.ScratchArray, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.len_array = len_array
            self._read()

        def _read(self):
            self.areas = []
            for i in range(self.len_array // 16):
                self.areas.append(KhoBoot.KhoScratch(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.areas)):
                pass
                self.areas[i]._fetch_instances()



    class SetupDataHdr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KhoBoot.SetupDataHdr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.next = self._io.read_u8le()
            self.type = KaitaiStream.resolve_enum(KhoBoot.SetupType, self._io.read_u4le())
            self.len = self._io.read_u4le()


        def _fetch_instances(self):
            pass
