"""ONNX: a backbone as a graph, ONNX files as backbones, and 8-bit quantisation."""
