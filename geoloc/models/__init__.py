"""Networks: image tower, heads, aggregations, losses, and their ONNX export."""
