"""What is reconstructed: operators, images, prior."""
