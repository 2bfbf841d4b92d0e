"""What is known of GPUs by their names."""

from __future__ import annotations

_PEAKS = {
    "H200": 989e12,
    "H100 PCIE": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}
"""Dense bf16 peaks in FLOP/s, from the vendors' data sheets; the first name that the GPU's name contains."""


def peak_of(name: str) -> float | None:
    """The dense bf16 peak in FLOP/s of a GPU by its driver's name or a node's label (`NVIDIA-H100-PCIe`); None: not known."""
    name = name.replace("-", " ").upper()
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
