"""Purifiers: the reverse process of a diffusion model, an optimisation, and compositions of them."""
