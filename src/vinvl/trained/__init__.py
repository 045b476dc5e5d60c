"""What goes with a trained model's weights, whatever kind of file they are in: task, tokenizer, how inputs look."""
