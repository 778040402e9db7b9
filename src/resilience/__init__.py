"""Policies that keep promises under faults, and the exception tree."""
