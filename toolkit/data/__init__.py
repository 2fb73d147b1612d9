"""Labelled images: reading the layouts users have, splitting them honestly, and making more."""
