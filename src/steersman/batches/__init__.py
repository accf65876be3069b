"""Tokenised sequences to packed micro-batches, in an order that depends on nothing but (seed, step)."""
