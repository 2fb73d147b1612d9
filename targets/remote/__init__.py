"""A board over ssh: what it is, and what runs on it on our behalf."""
