"""The packed file: quantized weights in the bits they need, compressed."""
