"""The command line: one module per verb; nothing imports this package."""
