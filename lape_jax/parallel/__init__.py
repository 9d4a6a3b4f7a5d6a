"""Devices and processes: where arrays live, who holds which part, and how processes agree and end together."""
