"""Students: geometry encoder, connector, thinking slots and a small language model.

Importing this package loads no torch; ``stillroom.students.model`` does.
"""
