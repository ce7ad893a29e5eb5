"""ONNX export and inference. The only package that imports onnx and onnxruntime."""
