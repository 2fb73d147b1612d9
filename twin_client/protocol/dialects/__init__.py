"""How records are said to those upstream: one pure file a dialect, found by its name."""
