"""What runs on a Pi as well: networks of the field timed in one engine, without torch."""
