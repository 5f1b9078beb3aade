"""The ioctls of ``/dev/liveupdate`` (6.19 on): how user space drives the orchestrator.

Nothing of this is in an image. Create and retrieve session are commands of the device, the
others of a session. Names are at most 63 bytes and terminated, tokens any u64.

Source: include/uapi/linux/liveupdate.h of Linux 6.19 to 7.3.
"""

from __future__ import annotations

from collections.abc import Mapping

from abi.schema import Layout, Struct, array, s32, u8, u32, u64

LIVEUPDATE_SESSION_NAME_LENGTH = 64

LIVEUPDATE_IOCTL_TYPE = 0xBA
LIVEUPDATE_IOCTL_CREATE_SESSION = 0xBA00
LIVEUPDATE_IOCTL_RETRIEVE_SESSION = 0xBA01
LIVEUPDATE_SESSION_PRESERVE_FD = 0xBA40
LIVEUPDATE_SESSION_RETRIEVE_FD = 0xBA41
LIVEUPDATE_SESSION_FINISH = 0xBA42
#: 7.2 on.
LIVEUPDATE_SESSION_GET_NAME = 0xBA43

_size = "size" / u32 * "of this struct"
_NAMED = (_size, "fd" / s32 * "answer", "name" / array(u8, LIVEUPDATE_SESSION_NAME_LENGTH))
liveupdate_ioctl_create_session = Struct(
    "liveupdate_ioctl_create_session", *_NAMED, packed=False, doc="ioctl 0xba00."
)
liveupdate_ioctl_retrieve_session = Struct(
    "liveupdate_ioctl_retrieve_session", *_NAMED, packed=False, doc="ioctl 0xba01."
)
_TOKEN = (_size, "fd" / s32, "token" / u64)
liveupdate_session_preserve_fd = Struct(
    "liveupdate_session_preserve_fd", *_TOKEN, packed=False, doc="ioctl 0xba40."
)
liveupdate_session_retrieve_fd = Struct(
    "liveupdate_session_retrieve_fd", *_TOKEN, packed=False, doc="ioctl 0xba41."
)
liveupdate_session_finish = Struct(
    "liveupdate_session_finish", _size, "reserved" / u32, packed=False, doc="ioctl 0xba42."
)
liveupdate_session_get_name = Struct(
    "liveupdate_session_get_name",
    _size,
    "reserved" / u32,
    "name" / array(u8, LIVEUPDATE_SESSION_NAME_LENGTH) * "answer",
    packed=False,
    doc="ioctl 0xba43 (7.2 on).",
)

#: Those of every release.
IOCTLS: Mapping[str, Layout] = {
    s.cname: s
    for s in (
        liveupdate_ioctl_create_session,
        liveupdate_ioctl_retrieve_session,
        liveupdate_session_preserve_fd,
        liveupdate_session_retrieve_fd,
        liveupdate_session_finish,
    )
}
IOCTL_CONSTANTS: Mapping[str, int] = {
    "LIVEUPDATE_IOCTL_TYPE": LIVEUPDATE_IOCTL_TYPE,
    "LIVEUPDATE_SESSION_NAME_LENGTH": LIVEUPDATE_SESSION_NAME_LENGTH,
    "LIVEUPDATE_IOCTL_CREATE_SESSION": LIVEUPDATE_IOCTL_CREATE_SESSION,
    "LIVEUPDATE_IOCTL_RETRIEVE_SESSION": LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
    "LIVEUPDATE_SESSION_PRESERVE_FD": LIVEUPDATE_SESSION_PRESERVE_FD,
    "LIVEUPDATE_SESSION_RETRIEVE_FD": LIVEUPDATE_SESSION_RETRIEVE_FD,
    "LIVEUPDATE_SESSION_FINISH": LIVEUPDATE_SESSION_FINISH,
}
