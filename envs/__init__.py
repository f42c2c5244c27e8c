"""Worlds as Gymnasium environments, and the real environments they are learned from."""
