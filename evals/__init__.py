"""Evaluations against labelled data: how well speech and triage do."""
