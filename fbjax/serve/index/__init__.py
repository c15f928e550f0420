"""The index of a catalogue in a Milvus database: its products, their pictures, and filters over their fields."""
