"""Commands of ``lutra`` that make, show and check packed models."""
