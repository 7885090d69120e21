"""Geometry encoders: one file each, images in, patch tokens and shape out."""
