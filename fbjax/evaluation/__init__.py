"""What a trained run is worth: protocols, the figures they count, and what to hold them against."""
