"""Networks as ONNX graphs: written with torch, run without it. The only room that knows onnx and onnxruntime."""
