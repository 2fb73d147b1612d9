"""Commands that measure the rooms below; their figures are committed under results/."""
