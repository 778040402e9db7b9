"""Where models come from, and how they are loaded.

``source`` reads what the operator named, ``pull`` fetches and verifies it
(``starter``, ``gguf`` and ``hub`` know their kind, ``store`` owns the cache
directory), ``blas`` and ``loading`` bring it to life in the engine process.

Only ``loading``, ``gguf`` and ``blas.measure`` touch mlx, and only ``loading`` at
import. The server process imports ``source`` and nothing else of this room.
"""
