"""All results as one page: collected, drawn, written, and compared with the last time."""
