"""Examples and labels, splits of them, augmentation."""
