# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class QemuCpr(KaitaiStruct):
    """The stream of descriptors and devices that QEMU hands to its successor in the
    migration modes cpr-transfer and cpr-exec. It accompanies a live update of the
    user space of a VM; it is not part of a KHO image. Big endian throughout.

    What stands for a descriptor depends on the mode, which the stream does not
    say: one byte, a space, that carries the descriptor as ancillary data of the
    socket (cpr-transfer), or its number, which stays valid across exec (cpr-exec).

    .. seealso::
       Source - https://www.qemu.org/docs/master/devel/migration/CPR.html
    """

    class DescriptorForm(IntEnum):
        bare = 0
        socket = 1
        number = 2
    def __init__(self, form, _io, _parent=None, _root=None):
        super(QemuCpr, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self.form = form
        self._read()

    def _read(self):
        self.magic = self._io.read_bytes(4)
        if not self.magic == b"\x51\x43\x50\x52":
            raise kaitaistruct.ValidationNotEqualError(b"\x51\x43\x50\x52", self.magic, self._io, u"/seq/0")
        self.version = self._io.read_u4be()
        if not self.version == 1:
            raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/seq/1")
        self.fds = []
        i = 0
        while True:
            _ = QemuCpr.CprFdElement(self.form, self._io, self, self._root)
            self.fds.append(_)
            if _.more == 0:
                break
            i += 1
        self.subsections = []
        i = 0
        while not self._io.is_eof():
            self.subsections.append(QemuCpr.Subsection(self._io, self, self._root))
            i += 1



    def _fetch_instances(self):
        pass
        for i in range(len(self.fds)):
            pass
            self.fds[i]._fetch_instances()

        for i in range(len(self.subsections)):
            pass
            self.subsections[i]._fetch_instances()


    class CprFd(KaitaiStruct):
        """vmstate `cpr fd`, version 1."""
        def __init__(self, form, _io, _parent=None, _root=None):
            super(QemuCpr.CprFd, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.form = form
            self._read()

        def _read(self):
            self.name = QemuCpr.Name(self._io, self, self._root)
            self.id = self._io.read_s4be()
            if self.form == QemuCpr.DescriptorForm.socket:
                pass
                self.carrier = self._io.read_u1()
                if not self.carrier == 32:
                    raise kaitaistruct.ValidationNotEqualError(32, self.carrier, self._io, u"/types/cpr_fd/seq/2")

            if self.form == QemuCpr.DescriptorForm.number:
                pass
                self.number = self._io.read_s4be()



        def _fetch_instances(self):
            pass
            self.name._fetch_instances()
            if self.form == QemuCpr.DescriptorForm.socket:
                pass

            if self.form == QemuCpr.DescriptorForm.number:
                pass



    class CprFdElement(KaitaiStruct):
        def __init__(self, form, _io, _parent=None, _root=None):
            super(QemuCpr.CprFdElement, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.form = form
            self._read()

        def _read(self):
            self.more = self._io.read_u1()
            if not self.more <= 1:
                raise kaitaistruct.ValidationGreaterThanError(1, self.more, self._io, u"/types/cpr_fd_element/seq/0")
            if self.more == 1:
                pass
                self.fd = QemuCpr.CprFd(self.form, self._io, self, self._root)



        def _fetch_instances(self):
            pass
            if self.more == 1:
                pass
                self.fd._fetch_instances()



    class Name(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(QemuCpr.Name, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_name = self._io.read_u4be()
            if not self.len_name >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.len_name, self._io, u"/types/name/seq/0")
            if not self.len_name <= 65535:
                raise kaitaistruct.ValidationGreaterThanError(65535, self.len_name, self._io, u"/types/name/seq/0")
            self.name = KaitaiStream.bytes_terminate(self._io.read_bytes(self.len_name), 0, False)


        def _fetch_instances(self):
            pass


    class Subsection(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(QemuCpr.Subsection, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.tag = self._io.read_bytes(1)
            if not self.tag == b"\x05":
                raise kaitaistruct.ValidationNotEqualError(b"\x05", self.tag, self._io, u"/types/subsection/seq/0")
            self.len_name = self._io.read_u1()
            self.name = (self._io.read_bytes(self.len_name)).decode(u"ASCII")
            if not self.name == u"CprState/vfio devices":
                raise kaitaistruct.ValidationNotEqualError(u"CprState/vfio devices", self.name, self._io, u"/types/subsection/seq/2")
            self.version = self._io.read_u4be()
            if not self.version == 1:
                raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/types/subsection/seq/3")
            self.devices = []
            i = 0
            while True:
                _ = QemuCpr.VfioDeviceElement(self._io, self, self._root)
                self.devices.append(_)
                if _.more == 0:
                    break
                i += 1


        def _fetch_instances(self):
            pass
            for i in range(len(self.devices)):
                pass
                self.devices[i]._fetch_instances()



    class VfioDevice(KaitaiStruct):
        """vmstate `cpr vfio device`, version 1. The ids are those of the old iommufd."""
        def __init__(self, _io, _parent=None, _root=None):
            super(QemuCpr.VfioDevice, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.name = QemuCpr.Name(self._io, self, self._root)
            self.devid = self._io.read_s4be()
            self.ioas_id = self._io.read_u4be()
            self.hwpt_id = self._io.read_u4be()


        def _fetch_instances(self):
            pass
            self.name._fetch_instances()


    class VfioDeviceElement(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(QemuCpr.VfioDeviceElement, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.more = self._io.read_u1()
            if not self.more <= 1:
                raise kaitaistruct.ValidationGreaterThanError(1, self.more, self._io, u"/types/vfio_device_element/seq/0")
            if self.more == 1:
                pass
                self.device = QemuCpr.VfioDevice(self._io, self, self._root)



        def _fetch_instances(self):
            pass
            if self.more == 1:
                pass
                self.device._fetch_instances()
