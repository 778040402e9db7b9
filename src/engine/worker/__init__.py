"""The engine process: loads the model and generates. Imports mlx."""
