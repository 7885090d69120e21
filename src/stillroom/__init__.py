"""stillroom: distil the 3D spatial reasoning of a large vision-language model into a small one."""

__version__ = "0.1.0"
