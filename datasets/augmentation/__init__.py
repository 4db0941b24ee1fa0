"""What training images undergo."""
