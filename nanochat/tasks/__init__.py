"""What a chat model is taught and asked: conversations for training, held-out problems for scoring."""
