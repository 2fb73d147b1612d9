"""The experiments of the paper's section 5 as code: cells that are run once, and tables rendered from them."""
