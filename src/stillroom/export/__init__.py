"""Quantised and ONNX forms of a student, and the runtime of the latter."""
