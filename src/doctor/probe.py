"""What MLX itself says, asked in a process of its own: ``python -m mlx_pharos.doctor.probe``.

MLX can end the process that imports it, and it must never be loaded into the
server's. Prints one JSON object.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

__all__ = ["main"]


def main(blas: str) -> None:
    """Load MLX as the engine would, time a product, and print what it is and does."""
    from ..engine.models import blas as blas_module  # noqa: PLC0415 - before mlx.core

    preloaded = blas_module.preload("off" if blas == "off" else "auto")
    import mlx.core as mx  # noqa: PLC0415 - after the preload

    device = mx.default_device()
    information = dict(mx.device_info())
    measured = blas_module.measure(preloaded)
    answer = {
        "mlx": importlib.metadata.version("mlx"),
        "device": "gpu" if device.type == mx.DeviceType.gpu else "cpu",
        "device_name": str(information.get("device_name", "")),
        "device_memory_bytes": information.get("memory_size"),
        "blas": measured.name,
        "blas_library": str(measured.library or ""),
        "blas_gflops": round(measured.gflops, 1),
        "blas_optimised": measured.is_optimised,
        "blas_preload": preloaded.reason,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "auto")
