"""NeuMF on MovieLens, trained to HR@10: see README.md."""
