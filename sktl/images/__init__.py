"""Images: from what X is to uint8 pixels, and to what a network was trained on."""
