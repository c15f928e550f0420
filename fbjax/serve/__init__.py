"""Search of a catalogue: an index in Milvus, and what asks it. Needs the extra `serve`."""
