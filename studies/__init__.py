"""Experiments as data: one TOML file each."""
