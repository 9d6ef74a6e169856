"""Boards that carry a sled controller."""
