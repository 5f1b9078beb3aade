"""Speed against C baselines, in one run: ``python -m benchmarks``."""
