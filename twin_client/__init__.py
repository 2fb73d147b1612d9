"""The gateway's agent: reads tags, runs an artifact, keeps and sends. Empty until its own issue is built."""
