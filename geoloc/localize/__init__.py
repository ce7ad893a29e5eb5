"""From photos to coordinates: the model, the inference session, and the job over many photos with its table."""
