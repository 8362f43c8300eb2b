"""Plotly figures and pages; they read the results table and nothing else."""
