"""What a training step costs on hardware nobody has to own."""
