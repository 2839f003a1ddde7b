"""Trained backbones as files for deployment: one ONNX file, or many formats and a table of what each changes."""

from facebones.exporting.model_export import export

__all__ = ["export"]
