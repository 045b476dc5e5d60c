"""Train, evaluate and use VinVL / Oscar+ models over text tokens, object tags and region features."""

__version__ = "0.1.0"
