"""The simulated pair: a kernel that hands over, and one that takes over.

``profile`` says which kernels there are, ``machine`` what they run on, ``outgoing`` is the
producer and ``incoming`` the consumer. ``scenario`` reads descriptions of what a producer does,
``faults`` breaks what it leaves.
"""
