"""The lean node: trains compiled programs. Needs NumPy and gRPC alone."""
