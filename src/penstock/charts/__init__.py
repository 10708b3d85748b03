"""What every picture shares: how arms are named and drawn, lines against L0, saving as PNG and SVG."""
