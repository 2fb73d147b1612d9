"""The workbench: network, data, training, quantization, export and build."""

import targets.runtime  # noqa: F401  before any of this room imports an engine: see there
