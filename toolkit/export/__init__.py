"""Exporters: one file per model format."""
