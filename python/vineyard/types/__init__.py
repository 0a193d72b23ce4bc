"""One module per library: how its types become objects. Each is imported only when the user has the library loaded."""
