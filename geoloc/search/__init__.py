"""Search of reference embeddings: the rows of each cell, and the best of them by exact scan or FAISS."""
