"""The kernel that hands over: what it preserves, and what it serializes of that."""
