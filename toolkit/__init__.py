"""The workbench: network, data, training, quantization, export and build."""
