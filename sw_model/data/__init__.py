"""Data sets: images in memory, image folders, text."""
