"""The PyTorch files that go into an exported Hugging Face folder as they are; they import nothing of fbjax."""
