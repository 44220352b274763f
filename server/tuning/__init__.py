"""`forwardpass tune`: the configuration of a model that answers most requests a second within an objective."""
