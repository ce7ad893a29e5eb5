"""From head outputs to predictions: retrieval, evidence, reranker, mixture, point, regions and their calibration."""
