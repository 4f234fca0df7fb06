"""Programs: a training step as a list of operators over numbered buffers, made once, run anywhere.

``native.py`` runs one without torch: read ``native/mest_runtime.h`` first.
"""
