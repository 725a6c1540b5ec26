"""The diffusion model: noise schedules, denoisers, reverse steps, guidance."""
