"""Kernels for GPUs, each beside the plain JAX that computes the same."""
