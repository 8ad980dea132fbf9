"""Questions about finished sweeps, answered from their records alone. Needs no JAX."""
