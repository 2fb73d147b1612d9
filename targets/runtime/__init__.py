"""What executes an artifact on any machine; needs numpy and the artifact's engine, nothing else of ours."""
