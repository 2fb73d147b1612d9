"""What a client loses: numbered readings go in by a real serial line, and those that reach a broker are counted."""
