"""The frozen prefix: each image once."""
