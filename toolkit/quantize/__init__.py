"""Quantization: float models into integer ones."""
