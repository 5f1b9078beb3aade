"""Live Update Orchestrator: sessions, files, and file-lifecycle-bound data (FLB).

In the FDT generations (6.19 to 7.1) the KHO blob ``LUO`` is a device tree, in the struct
generations (7.2 on) ``struct luo_ser``, whose compatible string is padded to a multiple
of 8 bytes: a longer string moves all that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abi.registry import Generation, Source
from abi.schema import Struct, array, chars, phys, s32, u8, u32, u64

LUO_KHO_ENTRY_NAME = "LUO"

#: Names in the FDT generations.
LUO_FDT_COMPATIBLE = b"luo-v1"
LUO_FDT_LIVEUPDATE_NUM = b"liveupdate-number"
LUO_FDT_SESSION_NODE_NAME = b"luo-session"
LUO_FDT_SESSION_COMPATIBLE = b"luo-session-v2"
LUO_FDT_SESSION_HEADER = b"luo-session-header"
LUO_FDT_FLB_NODE_NAME = b"luo-flb"
LUO_FDT_FLB_COMPATIBLE = b"luo-flb-v1"
LUO_FDT_FLB_HEADER = b"luo-flb-header"
LUO_FDT_ABI_HEADER = b"luo-abi-header"

#: Pages of a contiguous session array, a contiguous file array, the FLB array.
LUO_SESSION_PGCNT = 16
LUO_FILE_PGCNT = 2
LUO_FLB_PGCNT = 1

LIVEUPDATE_SESSION_NAME_LENGTH = 64
LIVEUPDATE_HNDL_COMPAT_LENGTH = 48
LIVEUPDATE_FLB_COMPAT_LENGTH = 48

LUO_FEATURE_NUMBER = 1
LUO_FEATURE_SESSIONS = 2
LUO_FEATURE_FLBS = 4

#: The control device.
LIVEUPDATE_IOCTL_TYPE = 0xBA
LIVEUPDATE_IOCTL_CREATE_SESSION = 0xBA00
LIVEUPDATE_IOCTL_RETRIEVE_SESSION = 0xBA01
LIVEUPDATE_SESSION_PRESERVE_FD = 0xBA40
LIVEUPDATE_SESSION_RETRIEVE_FD = 0xBA41
LIVEUPDATE_SESSION_FINISH = 0xBA42
LIVEUPDATE_SESSION_GET_NAME = 0xBA43

#: What the in-kernel test FLBs carry instead of an address.
LIVEUPDATE_TEST_FLB_MAGIC = 0xFEEDF00DCAFEBEE0


@dataclass(frozen=True, kw_only=True)
class LuoGeneration(Generation):
    """A form of LUO's state.

    ``root`` is "fdt" or "struct"; ``sessions`` and ``files`` are "contiguous", "blocks" or
    "none"; ``string_size`` is the size of the compatible field of ``struct luo_ser``.
    """

    root: str
    sessions: str
    files: str
    flb: bool
    features: bool = False
    string_size: int = 0


def _luo_ser(string_size: int) -> Struct:
    return Struct(
        "luo_ser",
        "compatible" / chars(string_size),
        "liveupdate_num" / u64 * "live updates since the last cold boot",
        "sessions_pa"
        / phys("struct kho_block_header_ser (entries: struct luo_session_ser)")
        * "0: no session",
        "flbs_pa" / phys("struct luo_flb_header_ser"),
        doc="Root of LUO's state, the KHO blob LUO.",
    )


luo_ser = _luo_ser(8)
luo_ser_16 = _luo_ser(16)

luo_file_set_ser = Struct(
    "luo_file_set_ser",
    "files" / phys("struct luo_file_ser[], or struct kho_block_header_ser from 7.2"),
    "count" / u64 * "files in the set",
    doc="The files of a session; files is 0 if and only if count is.",
)

luo_session_ser = Struct(
    "luo_session_ser",
    "name" / chars(64) * "unique, not empty, NUL-terminated",
    "file_set_ser" / luo_file_set_ser,
    doc="A session.",
)

luo_session_ser_v1 = Struct("luo_session_ser", "name" / chars(64), doc="A session without files.")

luo_session_header_ser = Struct(
    "luo_session_header_ser",
    "count" / u64,
    doc="Head of the contiguous array; its 80-byte entries follow directly.",
    tail=("ser", luo_session_ser),
)

luo_file_ser = Struct(
    "luo_file_ser",
    "compatible" / chars(48) * "handler",
    "data" / phys("root struct of the handler") * "opaque to LUO",
    "token" / u64 * "unique in the session",
    doc="A preserved file.",
)

luo_file_ser_named = Struct(
    "luo_file_ser",
    "name" / chars(48) * "handler",
    "data" / phys("root struct of the handler") * "opaque to LUO",
    "token" / u64 * "unique in the session",
    doc="A preserved file.",
)

luo_flb_ser = Struct(
    "luo_flb_ser",
    "name" / chars(48),
    "data" / u64 * "opaque to LUO; by convention a physical address, but not always",
    "count" / u64 * "preserved files that depend on it, and kernel users from 7.2",
    doc="File-lifecycle-bound data.",
)

luo_flb_header_ser = Struct(
    "luo_flb_header_ser",
    "pgcnt" / u64 * "pages of the array, 1",
    "count" / u64,
    doc="Head of the FLB page; its 64-byte entries follow directly.",
    tail=("ser", luo_flb_ser),
)

luo_feature_hdr = Struct(
    "luo_feature_hdr",
    "supp" / u64 * "supported",
    "req" / u64 * "required of the consumer",
    "active" / u64 * "in use in this image",
    "reserved" / array(u64, 13),
    doc="128 bytes at the head of every component.",
)

luo_ser_features = Struct(
    "luo_ser",
    "features" / luo_feature_hdr,
    "liveupdate_num" / u64,
    "sessions_pa" / phys("struct kho_block_header_ser (entries: struct luo_session_ser)"),
    "flbs_pa" / phys("struct luo_flb_header_ser"),
    doc="Root of LUO's state; feature words take the place of the string.",
)

liveupdate_ver_hdr = Struct(
    "liveupdate_ver_hdr",
    "magic" / u32 * "LVUP",
    "version" / u32,
    doc="Head of the section .liveupdate_features of a kernel image.",
)

liveupdate_feature_entry = Struct(
    "liveupdate_feature_entry",
    "name" / chars(48),
    "feat_bytes" / u32,
    "reserved" / u32,
    "supp" / u64,
    "req" / u64,
    "active" / u64,
    doc="What one component of that kernel can read and writes.",
)

_NAMED = ("size" / u32, "fd" / s32, "name" / array(u8, 64))
liveupdate_ioctl_create_session = Struct(
    "liveupdate_ioctl_create_session", *_NAMED, packed=False, doc="ioctl 0xba00."
)
liveupdate_ioctl_retrieve_session = Struct(
    "liveupdate_ioctl_retrieve_session", *_NAMED, packed=False, doc="ioctl 0xba01."
)
_TOKEN = ("size" / u32, "fd" / s32, "token" / u64)
liveupdate_session_preserve_fd = Struct(
    "liveupdate_session_preserve_fd", *_TOKEN, packed=False, doc="ioctl 0xba40."
)
liveupdate_session_retrieve_fd = Struct(
    "liveupdate_session_retrieve_fd", *_TOKEN, packed=False, doc="ioctl 0xba41."
)
liveupdate_session_finish = Struct(
    "liveupdate_session_finish", "size" / u32, "reserved" / u32, packed=False, doc="ioctl 0xba42."
)
liveupdate_session_get_name = Struct(
    "liveupdate_session_get_name",
    "size" / u32,
    "reserved" / u32,
    "name" / array(u8, 64),
    packed=False,
    doc="ioctl 0xba43 (7.2 on).",
)

_IOCTLS = {
    s.cname: s
    for s in (
        liveupdate_ioctl_create_session,
        liveupdate_ioctl_retrieve_session,
        liveupdate_session_preserve_fd,
        liveupdate_session_retrieve_fd,
        liveupdate_session_finish,
    )
}
_UAPI_CONSTANTS = {
    "LIVEUPDATE_IOCTL_TYPE": LIVEUPDATE_IOCTL_TYPE,
    "LIVEUPDATE_SESSION_NAME_LENGTH": LIVEUPDATE_SESSION_NAME_LENGTH,
    "LIVEUPDATE_HNDL_COMPAT_LENGTH": LIVEUPDATE_HNDL_COMPAT_LENGTH,
    "LIVEUPDATE_IOCTL_CREATE_SESSION": LIVEUPDATE_IOCTL_CREATE_SESSION,
    "LIVEUPDATE_IOCTL_RETRIEVE_SESSION": LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
    "LIVEUPDATE_SESSION_PRESERVE_FD": LIVEUPDATE_SESSION_PRESERVE_FD,
    "LIVEUPDATE_SESSION_RETRIEVE_FD": LIVEUPDATE_SESSION_RETRIEVE_FD,
    "LIVEUPDATE_SESSION_FINISH": LIVEUPDATE_SESSION_FINISH,
}
_CONTIGUOUS_CONSTANTS = {
    "LUO_SESSION_PGCNT": LUO_SESSION_PGCNT,
    "LUO_SESSION_MAX(4K)": 819,
    "LUO_FILE_PGCNT": LUO_FILE_PGCNT,
    "LUO_FILE_MAX(4K)": 128,
}
_FLB_CONSTANTS = {
    "LUO_FLB_PGCNT": LUO_FLB_PGCNT,
    "LUO_FLB_MAX(4K)": 63,
    "LIVEUPDATE_FLB_COMPAT_LENGTH": LIVEUPDATE_FLB_COMPAT_LENGTH,
}
_FDT_LAYOUTS = {
    "luo_session_header_ser": luo_session_header_ser,
    "luo_session_ser": luo_session_ser,
    "luo_file_set_ser": luo_file_set_ser,
    "luo_file_ser": luo_file_ser,
    **_IOCTLS,
}
_FLB_LAYOUTS = {"luo_flb_header_ser": luo_flb_header_ser, "luo_flb_ser": luo_flb_ser}
_ARRAYS = {
    "luo_session_ser": luo_session_ser,
    "luo_file_set_ser": luo_file_set_ser,
    "luo_file_ser": luo_file_ser,
    **_FLB_LAYOUTS,
}

_V5 = LuoGeneration(
    layer="luo",
    id="luo-v5",
    strings=("luo-v5",),
    layouts={
        "luo_ser": luo_ser,
        **_ARRAYS,
        **_IOCTLS,
        "liveupdate_session_get_name": liveupdate_session_get_name,
    },
    provenance="Linux 7.2.12, 7.3.4",
    kernels=("7.2", "7.3"),
    date="2026-08",
    constants={
        **_UAPI_CONSTANTS,
        **_FLB_CONSTANTS,
        "LUO_ABI_COMPAT_LEN": 8,
        "sessions_per_block(4K)": 51,
        "files_per_block(4K)": 63,
    },
    census=("linux-7.2", "linux-7.3"),
    root="struct",
    sessions="blocks",
    files="blocks",
    flb=True,
    string_size=8,
)

GENERATIONS = (
    LuoGeneration(
        layer="luo",
        id="luo-v1-session-v1",
        strings=("luo-v1", "luo-session-v1"),
        layouts={
            "luo_session_header_ser": Struct(
                "luo_session_header_ser", "count" / u64, tail=("ser", luo_session_ser_v1)
            ),
            "luo_session_ser": luo_session_ser_v1,
        },
        provenance="bisection points between 6.18 and 6.19",
        date="2025-11",
        census=("luo-v1-session-v1",),
        root="fdt",
        sessions="contiguous",
        files="none",
        flb=False,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v1",
        strings=("luo-v1", "luo-session-v2"),
        layouts=_FDT_LAYOUTS,
        provenance="Linux 6.19.11",
        kernels=("6.19",),
        date="2026-02",
        constants={**_UAPI_CONSTANTS, **_CONTIGUOUS_CONSTANTS},
        census=("linux-6.19",),
        root="fdt",
        sessions="contiguous",
        files="contiguous",
        flb=False,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v1-flb",
        strings=("luo-v1", "luo-session-v2", "luo-flb-v1"),
        layouts={**_FDT_LAYOUTS, **_FLB_LAYOUTS},
        provenance="Linux 7.1.13; 7.0 inferred",
        kernels=("7.0", "7.1"),
        date="2026-04",
        constants={**_UAPI_CONSTANTS, **_CONTIGUOUS_CONSTANTS, **_FLB_CONSTANTS},
        census=("linux-7.0", "linux-7.1"),
        root="fdt",
        sessions="contiguous",
        files="contiguous",
        flb=True,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v2",
        strings=("luo-v2",),
        layouts={**_FDT_LAYOUTS, **_FLB_LAYOUTS},
        provenance="LUO series of 2026-05: an FDT with luo-abi-header",
        source=Source.READ,
        date="2026-05",
        census=("luo-v2-v3-v4-dev",),
        root="fdt",
        sessions="contiguous",
        files="contiguous",
        flb=True,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v3",
        strings=("luo-v3",),
        layouts={"luo_ser": luo_ser, "luo_session_header_ser": luo_session_header_ser, **_ARRAYS},
        provenance="LUO series of 2026-05 and 2026-06: struct, contiguous arrays",
        source=Source.READ,
        date="2026-06",
        root="struct",
        sessions="contiguous",
        files="contiguous",
        flb=True,
        string_size=8,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v4",
        strings=("luo-v4",),
        layouts={"luo_ser": luo_ser, **_ARRAYS},
        provenance="LUO series of 2026-06: sessions as block list, files contiguous",
        source=Source.READ,
        date="2026-06",
        root="struct",
        sessions="blocks",
        files="contiguous",
        flb=True,
        string_size=8,
    ),
    LuoGeneration(
        layer="luo",
        id="luo-v4-composite",
        strings=("luo-v3-block-v1",),
        layouts={"luo_ser": luo_ser_16, **_ARRAYS},
        provenance="LUO series of 2026-06: luo-v4 in its first spelling",
        source=Source.READ,
        date="2026-06",
        root="struct",
        sessions="blocks",
        files="contiguous",
        flb=True,
        string_size=16,
    ),
    _V5,
    replace(
        _V5,
        id="luo-v5-block-v1",
        strings=("luo-v5;block-v1",),
        layouts={"luo_ser": luo_ser_16, **_ARRAYS},
        provenance="live update development tree, RFC of 2026-06-04",
        kernels=(),
        date="2026-06",
        constants={},
        census=("kho-compat-composite",),
        string_size=16,
    ),
    replace(
        _V5,
        id="luo-features",
        strings=(),
        layouts={
            "luo_ser": luo_ser_features,
            "luo_feature_hdr": luo_feature_hdr,
            **_ARRAYS,
            "luo_file_ser": luo_file_ser_named,
            "liveupdate_ver_hdr": liveupdate_ver_hdr,
            "liveupdate_feature_entry": liveupdate_feature_entry,
        },
        provenance="live update development tree after 7.2",
        kernels=(),
        date="2026-07",
        constants={
            "LUO_FEATURE_NUMBER": LUO_FEATURE_NUMBER,
            "LUO_FEATURE_SESSIONS": LUO_FEATURE_SESSIONS,
            "LUO_FEATURE_FLBS": LUO_FEATURE_FLBS,
            "LIVEUPDATE_VER_HDR_MAGIC": 0x4C565550,
            "LIVEUPDATE_VER_HDR_VER": 1,
            "LIVEUPDATE_HNDL_NAME_LENGTH": 48,
        },
        census=("luo-features-dev",),
        features=True,
        string_size=0,
    ),
)
