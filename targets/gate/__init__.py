"""The instruction-set gate: whether native libraries run on a board, before anyone drives out to it."""
