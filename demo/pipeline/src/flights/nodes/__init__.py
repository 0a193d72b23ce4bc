"""The nodes, a file per node."""
