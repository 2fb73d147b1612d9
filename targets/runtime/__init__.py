"""What executes an artifact on any machine; needs numpy and the artifact's engine, nothing else of ours."""

import os

# From its version 1.29 on, importing ONNX Runtime writes a device id and a database into the home folder and starts a
# thread that reports to its maker. A mine's gateway does neither; the switch is read once, at that import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
