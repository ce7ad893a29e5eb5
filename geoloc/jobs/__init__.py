"""Long jobs: what is finished survives a kill at any moment. Knows nothing about images or models."""
