# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from . import kho_vmalloc
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class KvmLuo(KaitaiStruct):
    """Development only. The handler string `kvm_vm_luo_v1` names three layouts:
    `vm` (32 bytes, top level), `vm_minimal` (8) and `vm_caretaker` (16).
    `kvm_vcpu_luo_v1` is `vcpu`; the layout of its architecture state is not
    published.
    """

    class CaretakerState(IntEnum):
        paused = 0
        running = 1
        stopping = 2
        stopped = 3
    def __init__(self, _io, _parent=None, _root=None):
        super(KvmLuo, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.vm = KvmLuo.Vm(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.vm._fetch_instances()

    class ControlBlock(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.ControlBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.state = KaitaiStream.resolve_enum(KvmLuo.CaretakerState, self._io.read_u4le())
            self.pcpu_id = self._io.read_u4le()
            self.vcpu_id = self._io.read_u4le()
            self.reserved = self._io.read_u4le()
            self.telemetry = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class FolioList(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.FolioList, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.nr_folios = self._io.read_u8le()
            self.folios_pa = []
            for i in range(self.nr_folios):
                self.folios_pa.append(self._io.read_u8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.folios_pa)):
                pass



    class MemAttr(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.MemAttr, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.gfn = self._io.read_u8le()
            self.attributes = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Telemetry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.Telemetry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.total_runs = self._io.read_u8le()
            self.total_exits = self._io.read_u8le()
            self.stall_count = self._io.read_u8le()
            self.last_exit_reason = self._io.read_u8le()
            self.last_exit_rip = self._io.read_u8le()
            self.stall_exit_reason = self._io.read_u8le()
            self.stall_exit_rip = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Vcpu(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.Vcpu, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.vcpu_id = self._io.read_u4le()
            self.flags = self._io.read_u4le()
            self.vm_token = self._io.read_u8le()
            self.arch_state = self._io.read_u8le()
            self.cb = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class Vm(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.Vm, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = self._io.read_u8le()
            self.nr_mem_attrs = self._io.read_u8le()
            self.mem_attrs = kho_vmalloc.KhoVmalloc(self._io)


        def _fetch_instances(self):
            pass
            self.mem_attrs._fetch_instances()


    class VmCaretaker(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.VmCaretaker, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = self._io.read_u8le()
            self.kho_folios = self._io.read_u8le()


        def _fetch_instances(self):
            pass


    class VmMinimal(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(KvmLuo.VmMinimal, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = self._io.read_u8le()


        def _fetch_instances(self):
            pass
