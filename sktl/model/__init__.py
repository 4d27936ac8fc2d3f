"""Backbone, suffix and head together, and what an estimator can do with them."""
