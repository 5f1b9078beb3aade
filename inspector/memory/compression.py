"""Pages of a kdump file, decompressed by the libraries, output bounded to one page."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

#: Flags of a page descriptor, and of the header's status.
ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
COMPRESSED = ZLIB | LZO | SNAPPY | ZSTD
NAMES = {ZLIB: "zlib", LZO: "lzo", SNAPPY: "snappy", ZSTD: "zstd"}

#: Decodes (data, page size) or raises PageError.
Decoder = Callable[[bytes, int], bytes]


class PageError(Exception):
    """The bytes of a page do not decompress to a page."""


class MissingCodecError(Exception):
    """No library for this compression is installed."""


def decoder(flag: int) -> Decoder:
    """The decoder of one compression flag. Raises MissingCodecError."""
    if flag not in _FACTORIES:
        raise PageError(f"unknown compression {flag:#x}")
    try:
        decode = _FACTORIES[flag]()
    except ImportError:
        raise MissingCodecError(NAMES[flag]) from None

    def checked(data: bytes, page_size: int) -> bytes:
        try:
            page = decode(data, page_size)
        except PageError:
            raise
        except Exception as error:  # each library has its own
            raise PageError(f"damaged {NAMES[flag]} data ({type(error).__name__})") from None
        if len(page) != page_size:
            raise PageError(f"{NAMES[flag]} data of {len(page)} bytes instead of {page_size}")
        return page

    return checked


def zlib_head(data: bytes, size: int) -> bytes:
    """The first ``size`` bytes of a zlib page, without unpacking the rest."""
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error:
        raise PageError("damaged zlib data") from None


def _zlib() -> Decoder:
    def decode(data: bytes, page_size: int) -> bytes:
        stream = zlib.decompressobj()
        # One byte more than a page, so that the end, and its checksum, is reached.
        page = stream.decompress(data, page_size + 1)
        if not stream.eof:
            raise PageError("zlib data without an end")
        return page

    return decode


def _lzo() -> Decoder:
    import lzallright

    decompress: Any = lzallright.LZOCompressor.decompress
    return lambda data, page_size: bytes(decompress(data, output_size_hint=page_size))


def _snappy() -> Decoder:
    decompress: Any
    try:
        import cramjam

        decompress = cramjam.snappy.decompress_raw
    except ImportError:
        import snappy

        decompress = snappy.uncompress

    def decode(data: bytes, page_size: int) -> bytes:
        size = 0
        for shift, byte in zip(range(0, 35, 7), data[:5], strict=False):
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if size != page_size:
            raise PageError(f"snappy data of {size} bytes instead of {page_size}")
        return bytes(decompress(data))

    return decode


def _zstd() -> Decoder:
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=1 << 20)

    def decode(data: bytes, page_size: int) -> bytes:
        size = zstandard.frame_content_size(data)
        if size > page_size:
            raise PageError(f"zstd data of {size} bytes instead of {page_size}")
        return context.decompress(data, max_output_size=page_size)

    return decode


_FACTORIES: dict[int, Callable[[], Decoder]] = {
    ZLIB: _zlib,
    LZO: _lzo,
    SNAPPY: _snappy,
    ZSTD: _zstd,
}
