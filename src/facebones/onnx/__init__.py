"""ONNX: export, run, count and quantise a backbone."""
