"""What tests share: generated models and other real parts in small."""
