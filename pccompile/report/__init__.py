"""What a person reads about a compiled model: tables, plots and pages, each made from what an analysis has found."""
