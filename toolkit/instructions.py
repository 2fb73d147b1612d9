"""What a multiply-accumulate costs on a core, in ARM instructions: what is gone by where nothing was counted."""

from typing import Final

from targets.board import Board

# By core and engine: (float, int8), as counted for `mine` (benchmarks/results/arm, recipes fp32 and int8-mse).
PER_MAC: Final = {
    "Cortex-A53": {"onnx": (1.008, 1.142), "tflite": (0.873, 0.692)},
    "Cortex-A72": {"onnx": (1.008, 1.142), "tflite": (0.615, 0.620)},
    "Cortex-A76": {"onnx": (1.008, 0.971), "tflite": (0.601, 0.419)},
}


def nearest_core(board: Board) -> str:
    """The counted core that stands for this board's: its own, or one with or without a dot product as it has."""
    if board.cpu in PER_MAC:
        return board.cpu
    return "Cortex-A76" if board.features.dot_product else "Cortex-A72"


def per_mac(board: Board, runtime: str) -> tuple[float, float]:
    """ARM instructions of one float and of one int8 multiply-accumulate on `board` in the engine `runtime`."""
    return PER_MAC[nearest_core(board)][runtime]
