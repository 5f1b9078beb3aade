"""Kaitai Struct specifications of the ABI, and the parsers generated from them."""
