"""What Highwall compiles for: boards as data, and the runtime that executes an artifact on any of them."""
