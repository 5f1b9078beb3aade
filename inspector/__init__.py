"""What one does with an image: open, locate, detect, walk, judge, simulate, export."""
