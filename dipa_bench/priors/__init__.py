"""Denoising priors: the interface and those that come with the package."""
