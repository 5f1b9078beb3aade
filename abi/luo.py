"""Live Update Orchestrator: sessions, files, and file-lifecycle-bound data (FLB).

In the FDT generations (6.19 to 7.1) the KHO blob ``LUO`` is a device tree, in the struct
generations (7.2 on) ``struct luo_ser``, whose compatible string is padded to a multiple
of 8 bytes: a longer string moves all that follows. The FDT magic at the start of the blob
tells which. One development step, ``luo-v2``, has both: a device tree with the address of the
struct.

Sessions and files are arrays, contiguous at first and lists of blocks (:mod:`abi.block`)
later; FLB entries always fill one page. The ioctls of the control device
(:mod:`abi.liveupdate`) come and go with these generations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from abi.liveupdate import (
    IOCTL_CONSTANTS,
    IOCTLS,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_NAME_LENGTH,
    liveupdate_session_get_name,
)
from abi.registry import Generation, Source
from abi.schema import PAGE_SIZES, Layout, Struct, array, chars, phys, u32, u64

#: The blob.
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

LIVEUPDATE_HNDL_COMPAT_LENGTH = 48
LIVEUPDATE_FLB_COMPAT_LENGTH = 48

#: Bits of LUO's feature words.
LUO_FEATURE_NUMBER = 1
LUO_FEATURE_SESSIONS = 2
LUO_FEATURE_FLBS = 4
#: Section of a kernel image, and the "LVUP" it starts with.
FEATURES_SECTION = ".liveupdate_features"
LIVEUPDATE_VER_HDR_MAGIC = 0x4C565550
LIVEUPDATE_VER_HDR_VER = 1

#: What the in-kernel test FLBs carry instead of an address, plus their number.
LIVEUPDATE_TEST_FLB_MAGIC = 0xFEEDF00DCAFEBEE0


@dataclass(frozen=True, kw_only=True)
class LuoGeneration(Generation):
    """A form of LUO's state.

    ``root`` is what the blob is, ``sessions`` and ``files`` how the arrays are stored, ``flb``
    whether there are FLB entries. ``features`` marks feature words in place of strings,
    ``string_size`` is the size in bytes of the compatible field of ``struct luo_ser``.
    """

    root: Literal["fdt", "struct"]
    sessions: Literal["contiguous", "blocks", "none"]
    files: Literal["contiguous", "blocks", "none"]
    flb: bool
    features: bool = False
    string_size: int = 0


def _luo_ser(*head: Any, sessions: str) -> Struct:
    return Struct(
        "luo_ser",
        *head,
        "liveupdate_num" / u64 * "live updates since the last cold boot, this one included",
        "sessions_pa" / phys(sessions) * "0: no session",
        "flbs_pa" / phys("struct luo_flb_header_ser") * "0: no FLB",
        doc="Root of LUO's state.",
    )


def _compatible(size: int) -> Any:
    return "compatible" / chars(size) * "padded to a multiple of 8 bytes"


_BLOCKS = "struct kho_block_header_ser (entries: struct luo_session_ser)"
_ARRAY = "struct luo_session_header_ser"

#: luo-v2: the FDT carries the string and the address of this.
luo_ser_v2 = _luo_ser(sessions=_ARRAY)
luo_ser_v3 = _luo_ser(_compatible(8), sessions=_ARRAY)
luo_ser = _luo_ser(_compatible(8), sessions=_BLOCKS)
luo_ser_16 = _luo_ser(_compatible(16), sessions=_BLOCKS)
luo_ser_24 = _luo_ser(_compatible(24), sessions=_BLOCKS)


def _file_set(files: str) -> Struct:
    return Struct(
        "luo_file_set_ser",
        "files" / phys(files) * "0 if and only if count is",
        "count" / u64 * "files in the set",
        doc="The files of a session.",
    )


def _session(file_set: Struct) -> Struct:
    return Struct(
        "luo_session_ser",
        "name" / chars(LIVEUPDATE_SESSION_NAME_LENGTH) * "unique, not empty, terminated",
        "file_set_ser" / file_set,
        doc="A session.",
    )


luo_file_set_ser_array = _file_set("struct luo_file_ser[]")
luo_file_set_ser = _file_set("struct kho_block_header_ser (entries: struct luo_file_ser)")
luo_session_ser_array = _session(luo_file_set_ser_array)
luo_session_ser = _session(luo_file_set_ser)
luo_session_ser_v1 = Struct(
    "luo_session_ser",
    "name" / chars(LIVEUPDATE_SESSION_NAME_LENGTH) * "terminated",
    doc="A session without files.",
)


def _session_header(session: Struct) -> Struct:
    return Struct(
        "luo_session_header_ser",
        "count" / u64 * "sessions",
        doc="Head of the contiguous array of 16 pages.",
        tail=("ser", session),
    )


luo_session_header_ser_v1 = _session_header(luo_session_ser_v1)
luo_session_header_ser = _session_header(luo_session_ser_array)


def _file(handler: Any) -> Struct:
    return Struct(
        "luo_file_ser",
        handler,
        "data" / phys("root struct of the handler") * "opaque to LUO",
        "token" / u64 * "given by user space, unique in the session",
        doc="A preserved file.",
    )


luo_file_ser = _file("compatible" / chars(LIVEUPDATE_HNDL_COMPAT_LENGTH) * "handler string")
luo_file_ser_named = _file("name" / chars(LIVEUPDATE_HNDL_COMPAT_LENGTH) * "handler")

luo_flb_ser = Struct(
    "luo_flb_ser",
    "name" / chars(LIVEUPDATE_FLB_COMPAT_LENGTH),
    "data" / phys("root struct of the FLB") * "opaque to LUO: test FLBs keep a constant here",
    "count" / u64 * "preserved files that depend on it, and from 7.2 on kernel users",
    doc="File-lifecycle-bound data.",
)

luo_flb_header_ser = Struct(
    "luo_flb_header_ser",
    "pgcnt" / u64 * "pages of the array: 1",
    "count" / u64 * "entries",
    doc="Head of the FLB page.",
    tail=("ser", luo_flb_ser),
)

luo_feature_hdr = Struct(
    "luo_feature_hdr",
    "supp" / u64 * "what the producer supports",
    "req" / u64 * "what the consumer must support",
    "active" / u64 * "what this image uses: the consumer must support it too",
    "reserved" / array(u64, 13),
    doc="Feature words of one component; what the bits mean is the component's.",
)

luo_ser_features = _luo_ser(
    "features" / luo_feature_hdr * "bits: 1 number, 2 sessions, 4 FLBs", sessions=_BLOCKS
)

liveupdate_ver_hdr = Struct(
    "liveupdate_ver_hdr",
    "magic" / u32 * "0x4c565550, LVUP",
    "version" / u32 * "1",
    doc="Head of the section .liveupdate_features of a kernel image; entries follow.",
)

liveupdate_feature_entry = Struct(
    "liveupdate_feature_entry",
    "name" / chars(48) * "component",
    "feat_bytes" / u32 * "size of its feature words",
    "reserved" / u32,
    "supp" / u64 * "supported",
    "req" / u64 * "required",
    "active" / u64 * "in use",
    doc="What one component of that kernel reads and writes.",
)


def _by_name(*structs: Struct) -> dict[str, Layout]:
    return {s.cname: s for s in structs}


_FLB = _by_name(luo_flb_header_ser, luo_flb_ser)
_ARRAYS = _by_name(
    luo_session_header_ser, luo_session_ser_array, luo_file_set_ser_array, luo_file_ser
)
_BLOCK_LISTS = _by_name(luo_session_ser, luo_file_set_ser, luo_file_ser)

Constants = Mapping[str, int | Mapping[int, int]]
_HANDLER_CONSTANTS: Constants = {"LIVEUPDATE_HNDL_COMPAT_LENGTH": LIVEUPDATE_HNDL_COMPAT_LENGTH}
_ARRAY_CONSTANTS: Constants = {
    "LUO_SESSION_PGCNT": LUO_SESSION_PGCNT,
    "LUO_SESSION_MAX": {
        page: luo_session_header_ser.capacity(LUO_SESSION_PGCNT * page) for page in PAGE_SIZES
    },
    "LUO_FILE_PGCNT": LUO_FILE_PGCNT,
    "LUO_FILE_MAX": {page: LUO_FILE_PGCNT * page // luo_file_ser.size for page in PAGE_SIZES},
}
_BLOCK_CONSTANTS: Constants = {
    "sessions_per_block": {page: (page - 16) // luo_session_ser.size for page in PAGE_SIZES},
    "files_per_block": {page: (page - 16) // luo_file_ser.size for page in PAGE_SIZES},
}
_FLB_CONSTANTS: Constants = {
    "LUO_FLB_PGCNT": LUO_FLB_PGCNT,
    "LUO_FLB_MAX": {page: luo_flb_header_ser.capacity(page) for page in PAGE_SIZES},
    "LIVEUPDATE_FLB_COMPAT_LENGTH": LIVEUPDATE_FLB_COMPAT_LENGTH,
}

_V1 = LuoGeneration(
    layer="luo",
    id="luo-v1",
    strings=("luo-v1", "luo-session-v2"),
    layouts={**_ARRAYS, **IOCTLS},
    provenance="Linux 6.19.11",
    kernels=("6.19",),
    date="2026-02-08",
    constants={**IOCTL_CONSTANTS, **_HANDLER_CONSTANTS, **_ARRAY_CONSTANTS},
    census=("linux-6.19",),
    root="fdt",
    sessions="contiguous",
    files="contiguous",
    flb=False,
)
_V3 = LuoGeneration(
    layer="luo",
    id="luo-v3",
    strings=("luo-v3",),
    layouts={"luo_ser": luo_ser_v3, **_ARRAYS, **_FLB},
    provenance="LUO series of 2026-05 and 2026-06",
    source=Source.READ,
    date="2026-05",
    constants={**_ARRAY_CONSTANTS, **_FLB_CONSTANTS, "LUO_ABI_COMPAT_LEN": 8},
    census=("luo-v2-v3-v4-dev",),
    notes="The blob is the struct, no FDT any more.",
    root="struct",
    sessions="contiguous",
    files="contiguous",
    flb=True,
    string_size=8,
)
_V4 = replace(
    _V3,
    id="luo-v4",
    strings=("luo-v4",),
    layouts={
        "luo_ser": luo_ser,
        **_by_name(luo_session_ser_array, luo_file_set_ser_array, luo_file_ser),
        **_FLB,
    },
    date="2026-06-03",
    constants={
        **_FLB_CONSTANTS,
        "LUO_FILE_PGCNT": LUO_FILE_PGCNT,
        "LUO_ABI_COMPAT_LEN": 8,
    },
    notes="Sessions are a block list, files still an array.",
    sessions="blocks",
)
_V5 = LuoGeneration(
    layer="luo",
    id="luo-v5",
    strings=("luo-v5",),
    layouts={
        "luo_ser": luo_ser,
        **_BLOCK_LISTS,
        **_FLB,
        **IOCTLS,
        **_by_name(liveupdate_session_get_name),
    },
    provenance="Linux 7.2.12, 7.3.4",
    kernels=("7.2", "7.3"),
    date="2026-08",
    constants={
        **IOCTL_CONSTANTS,
        **_HANDLER_CONSTANTS,
        **_FLB_CONSTANTS,
        **_BLOCK_CONSTANTS,
        "LUO_ABI_COMPAT_LEN": 8,
        "LIVEUPDATE_SESSION_GET_NAME": LIVEUPDATE_SESSION_GET_NAME,
    },
    census=("linux-7.2", "linux-7.3"),
    root="struct",
    sessions="blocks",
    files="blocks",
    flb=True,
    string_size=8,
)

GENERATIONS: tuple[LuoGeneration, ...] = (
    replace(
        _V1,
        id="luo-v1-session-v1",
        strings=("luo-v1", "luo-session-v1"),
        layouts=_by_name(luo_session_header_ser_v1, luo_session_ser_v1),
        provenance="bisection points between 6.18 and 6.19",
        kernels=(),
        date="2025-11",
        constants={"LUO_SESSION_PGCNT": LUO_SESSION_PGCNT},
        census=("luo-v1-session-v1",),
        notes="Sessions have names but no files yet.",
        files="none",
    ),
    _V1,
    replace(
        _V1,
        id="luo-v1-flb",
        strings=("luo-v1", "luo-session-v2", "luo-flb-v1"),
        layouts={**_ARRAYS, **_FLB, **IOCTLS},
        provenance="Linux 7.1.13; 7.0 inferred",
        kernels=("7.0", "7.1"),
        date="2026-04-12",
        constants={**IOCTL_CONSTANTS, **_HANDLER_CONSTANTS, **_ARRAY_CONSTANTS, **_FLB_CONSTANTS},
        census=("linux-7.0", "linux-7.1"),
        flb=True,
    ),
    replace(
        _V3,
        id="luo-v2",
        strings=("luo-v2",),
        layouts={"luo_ser": luo_ser_v2, **_ARRAYS, **_FLB},
        provenance="LUO series of 2026-05, first patch",
        date="2026-05-14",
        constants={**_ARRAY_CONSTANTS, **_FLB_CONSTANTS},
        notes="The FDT has one property besides its string: luo-abi-header, the physical "
        "address of struct luo_ser, which carries no string.",
        root="fdt",
        string_size=0,
    ),
    _V3,
    replace(
        _V4,
        id="luo-v3-kho-block-v1",
        strings=("luo-v3-kho-block-v1",),
        layouts={**_V4.layouts, "luo_ser": luo_ser_24},
        date="2026-05",
        constants={**_V4.constants, "LUO_ABI_COMPAT_LEN": 24},
        notes="luo-v4 in its first spelling.",
        string_size=24,
    ),
    replace(
        _V4,
        id="luo-v4-kho-block-v1",
        strings=("luo-v4-kho-block-v1",),
        layouts={"luo_ser": luo_ser_24, **_BLOCK_LISTS, **_FLB},
        date="2026-05",
        constants={**_FLB_CONSTANTS, **_BLOCK_CONSTANTS, "LUO_ABI_COMPAT_LEN": 24},
        notes="luo-v5 in its first spelling: unlike luo-v4, files are block lists.",
        files="blocks",
        string_size=24,
    ),
    _V4,
    _V5,
    replace(
        _V5,
        id="luo-v5-block-v1",
        strings=("luo-v5;block-v1",),
        layouts={"luo_ser": luo_ser_16, **_BLOCK_LISTS, **_FLB},
        provenance="live update development tree, RFC of 2026-06-04 and later",
        kernels=(),
        date="2026-06-04",
        constants={**_FLB_CONSTANTS, **_BLOCK_CONSTANTS, "LUO_ABI_COMPAT_LEN": 16},
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
            **_BLOCK_LISTS,
            "luo_file_ser": luo_file_ser_named,
            **_FLB,
            **_by_name(liveupdate_ver_hdr, liveupdate_feature_entry),
        },
        provenance="live update development tree after 7.2",
        kernels=(),
        date="2026-07 or later",
        constants={
            "LUO_FEATURE_NUMBER": LUO_FEATURE_NUMBER,
            "LUO_FEATURE_SESSIONS": LUO_FEATURE_SESSIONS,
            "LUO_FEATURE_FLBS": LUO_FEATURE_FLBS,
            "LIVEUPDATE_VER_HDR_MAGIC": LIVEUPDATE_VER_HDR_MAGIC,
            "LIVEUPDATE_VER_HDR_VER": LIVEUPDATE_VER_HDR_VER,
            "LIVEUPDATE_HNDL_NAME_LENGTH": LIVEUPDATE_HNDL_COMPAT_LENGTH,
        },
        census=("luo-features-dev",),
        notes="No string: struct luo_ser starts with feature words, and the handler of a file "
        "has a name without a version. A kernel image tells its own words in the section "
        ".liveupdate_features.",
        features=True,
        string_size=0,
    ),
)
