"""What pages are made of: charts, curves and the parts of their templates."""
