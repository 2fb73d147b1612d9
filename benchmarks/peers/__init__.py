"""Our artifact beside other engines on the same network, each with its best documented settings."""
