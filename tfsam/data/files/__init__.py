"""Files of images: where they are, and the decoding of them."""
