"""One file an engine: TITLE, PACKAGES, SETTINGS, PRECISIONS, GAPS, `convert` and `session`."""
