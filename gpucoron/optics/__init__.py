"""Telescope, masks, stops and filters of the coronagraphs."""
