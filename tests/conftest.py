"""What all tests share."""

from hypothesis import settings

# Machines that run tests are busy: an example that takes long once says nothing.
settings.register_profile("kho", deadline=None)
settings.load_profile("kho")
