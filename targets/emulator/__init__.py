"""An emulated board: its own Python, its own CPU, on the machine at hand."""
