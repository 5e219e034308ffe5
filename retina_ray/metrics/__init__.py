"""What is measured on a table of predictions, thin over torchmetrics."""
