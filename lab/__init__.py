"""Real kernels under QEMU: they produce images, and they judge them.

Development only; not installed with the inspector. See ``lab/README.md``.
"""
