"""Measurements on devices: cycles of training products, switching activity."""
