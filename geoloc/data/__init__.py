"""Data sets: layouts on disk, sample tables, samplers, batches and shards."""
