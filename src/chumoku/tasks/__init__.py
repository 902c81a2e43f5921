"""One verb, one plain function. Result fields are those of transformers' pipelines."""
