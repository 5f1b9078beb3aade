"""Struct layouts as compilers made them, against the declarations: ``kho abi verify|diff|lint``.

kernel_file -> btf, dwarf -> measure -> verify, compare, lint -> present
"""
