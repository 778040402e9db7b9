"""The engine: its client in the server process, and the process itself."""
