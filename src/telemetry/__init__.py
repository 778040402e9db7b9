"""Telemetry: what the server says about itself, so far its log."""
