"""Reference databases: rows with embeddings on disk, and how they are filled from imagery, photos and coordinates."""
