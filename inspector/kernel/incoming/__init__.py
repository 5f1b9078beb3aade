"""The kernel that takes over: early boot, LUO's sessions and files, devices."""
