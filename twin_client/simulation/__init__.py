"""A mine out of a seed, with the truth beside it: what the simulator sends and what judges are tested against."""
