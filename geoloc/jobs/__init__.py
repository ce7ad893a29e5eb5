"""Resumable jobs: finished shards survive a kill at any moment."""
