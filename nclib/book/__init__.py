"""What makes a notebook a chapter: claims, plots, stored results, figures that move."""
