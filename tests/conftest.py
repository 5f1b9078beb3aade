"""What all tests share."""

import os

from hypothesis import settings

# Machines that run tests are busy: an example that takes long once says nothing.
settings.register_profile("random", deadline=None)
# Who changes nothing gets the same answer twice; KHO_TEST_RANDOM=1 looks for new examples.
settings.register_profile("kho", deadline=None, derandomize=True)
settings.load_profile("random" if os.environ.get("KHO_TEST_RANDOM") else "kho")
