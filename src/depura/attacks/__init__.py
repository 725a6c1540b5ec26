"""Attacks. They know only a callable from images to logits, return candidates, and never judge themselves."""
