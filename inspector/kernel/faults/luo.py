"""Faults of the orchestrator: sessions, files, FLBs, and the lists they are kept in."""

from __future__ import annotations

from abi import luo as abi_luo
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.outgoing.luo import Session

fault = Library()

_SET = abi_luo.luo_session_ser.field("file_set_ser").offset
_TOKEN = abi_luo.luo_file_ser.field("token").offset
_DATA = abi_luo.luo_file_ser.field("data").offset


# -- root -----------------------------------------------------------------------------------


@fault("luo-compatible", 8, "compatible of the LUO blob unknown: panic")
def _luo_compatible(target: Target) -> None:
    luo = target.luo
    if luo.generation.features:
        raise Inapplicable("this generation has no compatible string")
    old = luo.generation.strings[0].encode()
    at = target.read(luo.address, target.page).find(old)
    target.write(luo.address + at, old[:-1] + b"9")


@fault("luo-blob-short", 8, "blob-size of the LUO blob below 32: panic")
def _luo_short(target: Target) -> None:
    if target.luo.generation.root != "struct":
        raise Inapplicable("the LUO blob is no struct")
    name = abi_luo.LUO_KHO_ENTRY_NAME
    target.set_root_property(f"/{name}", "blob-size", (16).to_bytes(8, "little"))


@fault("luo-number-zero", 10, "number of live updates is 0")
def _luo_number(target: Target) -> None:
    luo = target.luo
    at: int | None
    if luo.generation.root == "fdt":
        number = luo.number.to_bytes(8, "little")
        name = abi_luo.LUO_FDT_LIVEUPDATE_NUM.decode()
        at = target.property_at(luo.address, name, number)
    else:
        layout = luo.generation.layouts["luo_ser"]
        at = luo.address + layout.field("liveupdate_num").offset  # type: ignore[union-attr]
    if at is None or target.u64(at) != luo.number:
        raise Inapplicable("the number was not found")
    target.write_u64(at, 0)


# -- lists ----------------------------------------------------------------------------------


def _session_blocks(target: Target, count: int = 1) -> list[int]:
    luo = target.luo
    if luo.generation.sessions != "blocks" or len(luo.session_blocks) < count:
        raise Inapplicable(f"needs {count} session block(s)")
    return luo.session_blocks


def _file_blocks(target: Target, count: int = 1) -> Session:
    if target.luo.generation.files == "blocks":
        for session in target.luo.sessions:
            if len(session.blocks) >= count:
                return session
    raise Inapplicable(f"needs a session with {count} file block(s)")


@fault("session-count-zero", 6, "a session block counts 0 entries: panic")
def _session_zero(target: Target) -> None:
    target.write_u64(_session_blocks(target)[-1] + 8, 0)


@fault("session-count-over", 6, "a session block or array counts more entries than fit: panic")
def _session_over(target: Target) -> None:
    luo = target.luo
    target.sessions()
    at = luo.session_blocks[0] + (8 if luo.generation.sessions == "blocks" else 0)
    target.write_u64(at, 100_000)


@fault("session-cycle", 6, "the list of session blocks is a cycle: panic")
def _session_cycle(target: Target) -> None:
    blocks = _session_blocks(target)
    target.write_u64(blocks[-1], blocks[0])


@fault("session-block-partial", 6, "a session block that is not the last is not full")
def _session_partial(target: Target) -> None:
    first = _session_blocks(target, 2)[0]
    target.write_u64(first + 8, target.u64(first + 8) - 1)


@fault("session-block-not-preserved", 2, "page of a session block or array missing in the map")
def _session_unpreserved(target: Target) -> None:
    target.sessions()
    pages = 1 if target.luo.generation.sessions == "blocks" else abi_luo.LUO_SESSION_PGCNT
    frame = target.luo.session_blocks[0] // target.page
    target.set_block(frame, (pages - 1).bit_length(), on=False)


@fault("file-count-zero", 6, "a file block counts 0 entries")
def _file_zero(target: Target) -> None:
    target.write_u64(_file_blocks(target).blocks[-1] + 8, 0)


@fault("file-cycle", 6, "the list of file blocks is a cycle")
def _file_cycle(target: Target) -> None:
    blocks = _file_blocks(target).blocks
    target.write_u64(blocks[-1], blocks[0])


@fault("file-block-shared", 6, "two sessions point to one block of files")
def _file_shared(target: Target) -> None:
    first, second = target.sessions(files=1, count=2)[:2]
    target.write_u64(second.address + _SET, first.blocks[0])
    target.write_u64(second.address + _SET + 8, len(first.files))


@fault("file-count-mismatch", 6, "a session counts one file more than its blocks hold")
def _file_mismatch(target: Target) -> None:
    session = _file_blocks(target)
    target.write_u64(session.address + _SET + 8, len(session.files) + 1)


@fault("file-count-over", 6, "a session counts more files than its array can hold")
def _file_over(target: Target) -> None:
    if target.luo.generation.files != "contiguous":
        raise Inapplicable("the files are in no array")
    target.write_u64(target.sessions(files=1)[0].address + _SET + 8, 100_000)


@fault("file-array-missing", 8, "a session counts files, but points to none")
def _file_missing(target: Target) -> None:
    target.write_u64(target.sessions(files=1)[0].address + _SET, 0)


# -- sessions and files ---------------------------------------------------------------------


@fault("session-name-duplicate", 8, "two sessions with one name: the device cannot be opened")
def _name_twice(target: Target) -> None:
    first, second = target.sessions(count=2)[:2]
    target.write(second.address, target.read(first.address, 64))


@fault("session-name-empty", 8, "a session without a name")
def _name_empty(target: Target) -> None:
    target.write(target.sessions()[0].address, bytes(64))


@fault("session-name-unterminated", 8, "a session name without its NUL")
def _name_open(target: Target) -> None:
    target.write(target.sessions()[0].address, b"A" * 64)


@fault("file-token-duplicate", 8, "two files of a session with one token")
def _token_twice(target: Target) -> None:
    (first, _), (second, _) = target.files(2)[:2]
    target.write_u64(second + _TOKEN, target.u64(first + _TOKEN))


@fault("file-handler-unknown", 8, "a file whose handler nobody knows: the device cannot be opened")
def _handler(target: Target) -> None:
    target.write(target.files()[0][0], b"nosuch-v1".ljust(48, b"\0"))


@fault("file-handler-unterminated", 8, "a handler string without its NUL")
def _handler_open(target: Target) -> None:
    target.write(target.files()[0][0], b"B" * 48)


@fault("file-data-zero", 8, "a file whose data is 0")
def _data_zero(target: Target) -> None:
    target.write_u64(target.files()[0][0] + _DATA, 0)


@fault("file-data-not-preserved", 2, "page of a file's root struct missing in the map")
def _data_unpreserved(target: Target) -> None:
    entry = target.files()[0][1]
    order = target.kernel.kho.order_of(entry.data)
    target.set_block(entry.data // target.page, order, on=False)


# -- FLB ------------------------------------------------------------------------------------


def _flbs(target: Target, count: int = 1) -> int:
    """Address of the first FLB entry of at least ``count``."""
    luo = target.luo
    if not luo.flb_page or sum(1 for f in luo.flbs if f.count) < count:
        raise Inapplicable(f"needs {count} FLB(s)")
    return luo.flb_page + abi_luo.luo_flb_header_ser.size


_FLB_COUNT = abi_luo.luo_flb_ser.field("count").offset


@fault("flb-name-duplicate", 9, "two FLBs with one name")
def _flb_twice(target: Target) -> None:
    first = _flbs(target, 2)
    target.write(first + abi_luo.luo_flb_ser.size, target.read(first, 48))


@fault("flb-count-zero", 9, "an FLB that counts no users")
def _flb_zero(target: Target) -> None:
    target.write_u64(_flbs(target) + _FLB_COUNT, 0)


@fault("flb-count-low", 9, "an FLB that counts fewer users than files depend on it")
def _flb_low(target: Target) -> None:
    first = _flbs(target)
    count = target.u64(first + _FLB_COUNT)
    if count < 2:
        raise Inapplicable("needs an FLB with two users")
    target.write_u64(first + _FLB_COUNT, count - 1)


@fault("flb-entries-over", 6, "the FLB page counts more entries than fit")
def _flb_over(target: Target) -> None:
    target.write_u64(_flbs(target) - 8, 100_000)
