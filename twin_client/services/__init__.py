"""The paper's three services: registration, configuration, execution; and the model update that a command starts."""
