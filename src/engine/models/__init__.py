"""Where models come from, and how they are loaded.

``source`` reads what the operator named, ``pull`` fetches and verifies it
(``starter``, ``gguf`` and ``hub`` know their kind, ``store`` owns the cache
directory), ``blas`` and ``loading`` bring it to life in the engine process.

The server process uses ``source``, ``store``, ``machine`` and
``pull.ensure_local``, which never import mlx or the hub's library. ``loading``
and ``hub`` import both; ``gguf`` imports mlx when a file is converted, and
``blas`` when it measures.
"""
