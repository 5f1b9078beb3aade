"""What the bytes of the live update ABI mean: pure, no file, no terminal, no clock."""
