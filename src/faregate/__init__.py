"""Faregate: an AI control plane between Open WebUI and the OpenRouter API."""

__version__ = "0.1.0"
