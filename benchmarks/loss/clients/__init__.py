"""The clients that are measured, one file each, found by its name."""
