"""Schemes that change what a step learns from: pure pieces below `training`, which composes them."""
