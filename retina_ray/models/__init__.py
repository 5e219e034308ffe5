"""Networks: torch and torchvision only; a model knows one device and no configuration."""
