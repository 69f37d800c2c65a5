"""Measurements of quality against labelled data."""
