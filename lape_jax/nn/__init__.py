"""Building blocks in Flax linen: position tables, joining methods, attention, encoder."""
