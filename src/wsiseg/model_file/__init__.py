"""The model file: one ONNX file that explains and checks itself."""
